/* asn_transfer over [N] arrays on an NVIDIA GPU; compiled by NVRTC. The macros are those of cuda.h, with one step. */

#include "cuda.h"
#include "transfer_step.h"

#define CONSTANTS (float)r, (float)a, (float)b, (float)half_height, (float)offset, (float)cut

#if !BACKWARD
extern "C" __global__ void __launch_bounds__(THREADS)
transfer_forward(const io_t *__restrict__ s, io_t *__restrict__ f, index_t N, double r, double a, double b,
                 double half_height, double offset, double cut) {
    const index_t n = ((index_t)blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    if (n >= N) return;
    const Vector<io_t> row = load(s + n);
    Vector<io_t> out;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) out.at[i] = to_io(transfer(from_io(row.at[i]), CONSTANTS));
    store(f + n, out);
}
#endif

#if BACKWARD
extern "C" __global__ void __launch_bounds__(THREADS)
transfer_backward(const io_t *__restrict__ grad_f, const io_t *__restrict__ s, io_t *__restrict__ grad_s, index_t N,
                  double r, double a, double b, double half_height, double offset, double cut) {
    const index_t n = ((index_t)blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    if (n >= N) return;
    const Vector<io_t> row = load(s + n), g = load(grad_f + n);
    Vector<io_t> out;
#pragma unroll
    for (int i = 0; i < VECTOR; i++)
        out.at[i] = to_io(from_io(g.at[i]) * transfer_slope(from_io(row.at[i]), CONSTANTS));
    store(grad_s + n, out);
}
#endif
