/* asn_transfer over [N] arrays on the CPU; plain C, called through ctypes. */

#include "cpu.h"

enum { BLOCK = 4096 };

/* coth(y) for y in (0, 1): y coth(y) is a polynomial in y^2, here to 1e-9 (Chebyshev). Nothing cancels for small y. */
STEP_FUNCTION float coth_of(float y) {
    const float z = y * y;
    float p = 1.5951797e-5f;
    p = p * z - 2.0589732e-4f;
    p = p * z + 2.1135086e-3f;
    p = p * z - 2.2221554e-2f;
    p = p * z + 3.3333328e-1f;
    p = p * z + 1.0f;
    return p / y;
}

STEP_FUNCTION float transfer(float s, float r, float a, float b, float half_height, float offset, float cut) {
    const float f = half_height * coth_of(0.5f * (r + a / ((s < 0.0f ? 0.0f : s) + b))) + offset;
    return s <= cut || f < 0.0f ? 0.0f : f;
}

/* f' = half_height (coth^2 - 1) w^2 / (2 a) with w = a / (s + b). */
STEP_FUNCTION float transfer_slope(float s, float r, float a, float b, float half_height, float offset, float cut) {
    const float w = a / ((s < 0.0f ? 0.0f : s) + b), k = coth_of(0.5f * (r + w));
    const float slope = half_height * (k * k - 1.0f) * (w * w) * (0.5f / a);
    return s <= cut || half_height * k + offset < 0.0f ? 0.0f : slope;
}

EXPORT void transfer_forward(const void *s, void *f, index_t N, int dtype, float r, float a, float b,
                             float half_height, float offset, float cut, int threads) {
    const index_t blocks = (N + BLOCK - 1) / BLOCK;
    make_present(f, N * (dtype == FLOAT32 ? 4 : 2), threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 2) if (threads > 1)
    for (index_t k = 0; k < blocks; k++) {
        const int m = (int)(N - k * BLOCK < BLOCK ? N - k * BLOCK : BLOCK);
        float buffer[BLOCK], out[BLOCK], *target = dtype == FLOAT32 ? (float *)f + k * BLOCK : out;
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
        float buffer[BLOCK], g_buffer[BLOCK], out[BLOCK], *target = dtype == FLOAT32 ? (float *)grad_s + k * BLOCK : out;
        const float *row = load_row(s, dtype, k * BLOCK, m, buffer);
        const float *g = load_row(grad_f, dtype, k * BLOCK, m, g_buffer);
        for (int i = 0; i < m; i++)
            target[i] = g[i] * transfer_slope(row[i], r, a, b, half_height, offset, cut);
        if (dtype != FLOAT32) store_row(grad_s, dtype, k * BLOCK, m, out);
    }
}
