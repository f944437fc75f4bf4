/* asn_transfer over [N] arrays on an NVIDIA GPU; compiled by NVRTC. The macros are those of cuda.h, with one step. */

#include "cuda.h"
#include "step.h"

#define CONSTANTS (float)r, (float)a, (float)b, (float)half_height, (float)offset, (float)cut

#if !BACKWARD
extern "C" __global__ void __launch_bounds__(THREADS)
asn_transfer_forward(FORWARD_PARAMETERS) {
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
asn_transfer_backward(BACKWARD_PARAMETERS) {
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
