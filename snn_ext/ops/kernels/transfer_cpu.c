/* asn_transfer over [N] arrays on the CPU; plain C, called through ctypes. */

#include "cpu.h"
#include "transfer_step.h"

enum { BLOCK = 4096 };
DEFINE_ROWS(3)

EXPORT void transfer_forward(const void *s, void *f, index_t N, int dtype, float r, float a, float b,
                             float half_height, float offset, float cut, int threads) {
    const index_t blocks = (N + BLOCK - 1) / BLOCK;
    make_present(f, N * (dtype == FLOAT32 ? 4 : 2), threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 2) if (threads > 1)
    for (index_t k = 0; k < blocks; k++) {
        const int m = (int)(N - k * BLOCK < BLOCK ? N - k * BLOCK : BLOCK);
        row_t *const rows = rows_of_thread();
        float *buffer = rows[0], *out = rows[1], *target = dtype == FLOAT32 ? (float *)f + k * BLOCK : out;
        const float *row = load_row(s, dtype, k * BLOCK, m, buffer);
        for (int i = 0; i < m; i++) target[i] = transfer(row[i], r, a, b, half_height, offset, cut);
        if (dtype != FLOAT32) store_row(f, dtype, k * BLOCK, m, out);
    }
}

EXPORT void transfer_backward(const void *grad_f, const void *s, void *grad_s, index_t N, int dtype, float r, float a,
                              float b, float half_height, float offset, float cut, int threads) {
    const index_t blocks = (N + BLOCK - 1) / BLOCK;
    make_present(grad_s, N * (dtype == FLOAT32 ? 4 : 2), threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 2) if (threads > 1)
    for (index_t k = 0; k < blocks; k++) {
        const int m = (int)(N - k * BLOCK < BLOCK ? N - k * BLOCK : BLOCK);
        row_t *const rows = rows_of_thread();
        float *buffer = rows[0], *g_buffer = rows[1], *out = rows[2];
        float *target = dtype == FLOAT32 ? (float *)grad_s + k * BLOCK : out;
        const float *row = load_row(s, dtype, k * BLOCK, m, buffer);
        const float *g = load_row(grad_f, dtype, k * BLOCK, m, g_buffer);
        for (int i = 0; i < m; i++)
            target[i] = g[i] * transfer_slope(row[i], r, a, b, half_height, offset, cut);
        if (dtype != FLOAT32) store_row(grad_s, dtype, k * BLOCK, m, out);
    }
}
