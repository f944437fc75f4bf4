/* integrate_and_fire over [T][N] arrays on the CPU; plain C, called through ctypes.

   Neurons are cut into blocks of BLOCK; a block goes through all time steps while its state stays in the L1 cache (the
   charges of a segment, in the backward pass, in the L2 cache), and the inner loops over its neurons are left to the
   compiler's vectoriser. Blocks are handed out to the threads of one OpenMP region a call. Each block adds its terms of
   a parameter's gradient into places of its own, and these are added in the order of the blocks, so that the result
   does not depend on the number of threads. */

#include "cpu.h"

enum { BLOCK = 4096, SEGMENT = 16 };
DEFINE_ROWS(SEGMENT + 5)

/* Call f with the kind of reset and the tie rule as constants: each combination gets a branch-free loop. */
#define SPECIALISE(f, kind, at, ...)                                                                                  \
    switch ((kind) * 2 + (at)) {                                                                                      \
        case RESET_SUBTRACT * 2: f(RESET_SUBTRACT, 0, __VA_ARGS__); break;                                            \
        case RESET_SUBTRACT * 2 + 1: f(RESET_SUBTRACT, 1, __VA_ARGS__); break;                                        \
        case RESET_ZERO * 2: f(RESET_ZERO, 0, __VA_ARGS__); break;                                                    \
        case RESET_ZERO * 2 + 1: f(RESET_ZERO, 1, __VA_ARGS__); break;                                                \
        case RESET_NONE * 2: f(RESET_NONE, 0, __VA_ARGS__); break;                                                    \
        default: f(RESET_NONE, 1, __VA_ARGS__); break;                                                                \
    }

/* -- forward ------------------------------------------------------------------------------------------------------ */

STEP_FUNCTION void advance(int kind, int at, int m, const float *restrict x, float *restrict v, float theta,
                           float *restrict spikes, float on, float off) {
    for (int i = 0; i < m; i++) {
        const float h = charge(v[i], x[i]), s = fires(h, theta, at);
        spikes[i] = s != 0.0f ? on : off;
        v[i] = reset(h, s, theta, kind);
    }
}

static void forward_block(index_t b, int m, const void *x, void *spikes, const float *v_start, int v_stride,
                          float *v_end, const float *theta, int theta_stride, const float *scale, float *checkpoints,
                          index_t T, index_t N, int dtype, int kind, int at) {
    row_t *const rows = rows_of_thread();
    float *buffer = rows[0], *out = rows[1], *v = v_end + b;
    const float on = scale ? scale[0] : 1.0f, off = 0.0f * on;
    start_row(v_start, v_stride, b, m, v);
    for (index_t t = 0; t < T; t++) {
        const float *row = load_row(x, dtype, t * N + b, m, buffer), th = theta[t * theta_stride];
        float *target = dtype == FLOAT32 ? (float *)spikes + t * N + b : out;
        if (checkpoints && t && t % SEGMENT == 0) memcpy(checkpoints + (t / SEGMENT - 1) * N + b, v, m * sizeof *v);
        SPECIALISE(advance, kind, at, m, row, v, th, target, on, off)
        if (dtype != FLOAT32) store_row(spikes, dtype, t * N + b, m, out);
    }
}

/* -- backward ----------------------------------------------------------------------------------------------------- */

STEP_FUNCTION void recompute(int kind, int at, int m, const float *restrict x, float *restrict v, float theta,
                             float *restrict h_row) {
    for (int i = 0; i < m; i++) {
        const float h = charge(v[i], x[i]);
        h_row[i] = h;
        v[i] = reset(h, fires(h, theta, at), theta, kind);
    }
}

/* c: gradient of the potential, after the step on entry, before it on return. h is overwritten by s * g and d by the
   terms of the threshold's gradient: what is still to be summed. */
STEP_FUNCTION void retreat(int kind, int at, int m, int detach_reset, float *restrict h, float *restrict d,
                           const float *restrict g, float scale, float theta, float *restrict c,
                           float *restrict grad_x) {
    for (int i = 0; i < m; i++) {
        const float s = fires(h[i], theta, at);
        float term;
        const float e = step_backward(h[i], s, c[i], g[i] * scale, d[i], theta, kind, detach_reset, &term);
        grad_x[i] = c[i] = e;
        h[i] = s * g[i];
        d[i] = term;
    }
}

/* In float32 over one row of a block, in sixteen strands whatever the width of the machine's vectors. */
static double sum_row(const float *row, int m) {
    float strand[16] = {0};
    double sum = 0.0;
    int i = 0;
    for (; i + 16 <= m; i += 16)
        for (int k = 0; k < 16; k++) strand[k] += row[i + k];
    for (int k = 0; k < 16; k++) sum += strand[k];
    for (; i < m; i++) sum += row[i];
    return sum;
}

static void backward_block(index_t b, int m, const void *grad_spikes, const float *grad_v_end, const void *x,
                           const float *v_start, int v_stride, const float *theta, int theta_stride,
                           const float *scale, const float *checkpoints, void *grad_x, float *grad_v_start,
                           double *theta_sums, double *scale_sum, double *v_sum, index_t T, index_t N, int dtype,
                           int kind, int at, int detach_reset, int curve, float alpha, float gain) {
    row_t *const rows = rows_of_thread(), *const h = rows + 5;
    float *c = rows[0], *v = rows[1], *d = rows[2], *buffer = rows[3], *out = rows[4];
    if (grad_v_end) memcpy(c, grad_v_end + b, m * sizeof *c);
    else memset(c, 0, m * sizeof *c);
    for (index_t segment = (T - 1) / SEGMENT; segment >= 0; segment--) {
        const index_t first = segment * SEGMENT, last = first + SEGMENT < T ? first + SEGMENT : T;
        if (segment) memcpy(v, checkpoints + (segment - 1) * N + b, m * sizeof *v);
        else start_row(v_start, v_stride, b, m, v);
        for (index_t t = first; t < last; t++) {
            const float *row = load_row(x, dtype, t * N + b, m, buffer);
            SPECIALISE(recompute, kind, at, m, row, v, theta[t * theta_stride], h[t - first])
        }
        for (index_t t = last - 1; t >= first; t--) {
            const float th = theta[t * theta_stride], *g = buffer;
            float *h_row = h[t - first], *target = dtype == FLOAT32 && grad_x ? (float *)grad_x + t * N + b : out;
            if (grad_spikes) g = load_row(grad_spikes, dtype, t * N + b, m, buffer);
            else memset(buffer, 0, m * sizeof *buffer);
            surrogate_row(curve, alpha, gain, m, h_row, th, d);
            if (detach_reset) SPECIALISE(retreat, kind, at, m, 1, h_row, d, g, scale ? scale[0] : 1.0f, th, c, target)
            else SPECIALISE(retreat, kind, at, m, 0, h_row, d, g, scale ? scale[0] : 1.0f, th, c, target)
            if (dtype != FLOAT32 && grad_x) store_row(grad_x, dtype, t * N + b, m, out);
            if (theta_sums) theta_sums[t * theta_stride] += sum_row(d, m);
            if (scale_sum) *scale_sum += sum_row(h_row, m);
        }
    }
    if (v_sum) *v_sum = sum_row(c, m);
    else if (grad_v_start) memcpy(grad_v_start + b, c, m * sizeof *c);
}

/* -- what ctypes calls --------------------------------------------------------------------------------------------- */

EXPORT index_t block_size(void) { return BLOCK; }

EXPORT void integrate_and_fire_forward(const void *x, void *spikes, const float *v_start, int v_stride, float *v_end,
                               const float *theta, int theta_stride, const float *scale, float *checkpoints,
                               index_t T, index_t N, int dtype, int kind, int at, int threads) {
    const index_t blocks = (N + BLOCK - 1) / BLOCK;
    make_present(spikes, T * N * (dtype == FLOAT32 ? 4 : 2), threads);
    make_present(v_end, N * 4, threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 2) if (threads > 1)
    for (index_t k = 0; k < blocks; k++) {
        const index_t b = k * BLOCK;
        forward_block(b, (int)(N - b < BLOCK ? N - b : BLOCK), x, spikes, v_start, v_stride, v_end, theta,
                      theta_stride, scale, checkpoints, T, N, dtype, kind, at);
    }
}

/* Add one column of the blocks' sums in their order. */
static float add_blocks(const double *sums, index_t blocks, index_t width, index_t column) {
    double sum = 0.0;
    for (index_t k = 0; k < blocks; k++) sum += sums[k * width + column];
    return (float)sum;
}

/* A gradient that is not wanted is NULL. That of the potential is [N], or with one_v a single element, a sum.
   Room for the blocks' sums comes from the caller, zeroed: [blocks][thetas, scale, v]. */
EXPORT void integrate_and_fire_backward(const void *grad_spikes, const float *grad_v_end, const void *x,
                                const float *v_start, int v_stride, const float *theta, int theta_stride,
                                const float *scale, const float *checkpoints, void *grad_x, float *grad_v_start,
                                int one_v, float *grad_theta, float *grad_scale, double *sums, index_t T, index_t N,
                                int dtype, int kind, int at, int detach_reset, int curve, float alpha, float gain,
                                int threads) {
    const index_t blocks = (N + BLOCK - 1) / BLOCK, thetas = theta_stride ? T : 1, width = thetas + 2;
    make_present(grad_x, T * N * (dtype == FLOAT32 ? 4 : 2), threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 2) if (threads > 1)
    for (index_t k = 0; k < blocks; k++) {
        const index_t b = k * BLOCK;
        backward_block(b, (int)(N - b < BLOCK ? N - b : BLOCK), grad_spikes, grad_v_end, x, v_start, v_stride, theta,
                       theta_stride, scale, checkpoints, grad_x, grad_v_start,
                       grad_theta ? sums + k * width : 0, grad_scale ? sums + k * width + thetas : 0,
                       grad_v_start && one_v ? sums + k * width + thetas + 1 : 0, T, N, dtype, kind, at, detach_reset,
                       curve, alpha, gain);
    }
    for (index_t t = 0; grad_theta && t < thetas; t++) grad_theta[t] = add_blocks(sums, blocks, width, t);
    if (grad_scale) *grad_scale = add_blocks(sums, blocks, width, thetas);
    if (grad_v_start && one_v) *grad_v_start = add_blocks(sums, blocks, width, thetas + 1);
}
