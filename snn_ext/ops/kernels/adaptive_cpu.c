/* adaptive_spiking over [T][N] arrays on the CPU; plain C, called through ctypes.

   As in integrate_and_fire_cpu.c a block of neurons goes through all time steps while its state stays in the cache. A state is
   four arrays [N], a checkpoint [4][N]; constants are six numbers, or six arrays [N] behind each other. */

#include "cpu.h"
#include "adaptive_step.h"

enum { BLOCK = 2048, SEGMENT = 16, STATES = 4 };
DEFINE_ROWS(2 * SEGMENT + 2 * STATES + 5)

typedef struct { adaptive_constants same; const float *rows; index_t N; } constants_t;

STEP_FUNCTION adaptive_constants constants_at(const constants_t *c, int uniform, index_t i) {
    const float *row = c->rows + i;
    const index_t N = c->N;
    if (uniform) return c->same;
    return (adaptive_constants){row[0], row[N], row[2 * N], row[3 * N], row[4 * N], row[5 * N]};
}

static constants_t constants_of(const float *array, int stride, index_t b, index_t N) {
    constants_t c = {{array[0], array[1], array[2], array[3], array[4], array[5]}, array + b, N};
    if (stride) c.same = (adaptive_constants){0};
    return c;
}

/* Call f with the kind of output, of input and of constants as constants: each combination gets a branch-free loop. */
#define SPECIALISE_2(f, output, analog, uniform, ...)                                                                 \
    if (analog) { if (uniform) f(output, 1, 1, __VA_ARGS__); else f(output, 1, 0, __VA_ARGS__); }                     \
    else { if (uniform) f(output, 0, 1, __VA_ARGS__); else f(output, 0, 0, __VA_ARGS__); }
#define SPECIALISE(f, output, analog, uniform, ...)                                                                   \
    switch (output) {                                                                                                 \
        case SPIKES: SPECIALISE_2(f, SPIKES, analog, uniform, __VA_ARGS__) break;                                     \
        case HEIGHTS: SPECIALISE_2(f, HEIGHTS, analog, uniform, __VA_ARGS__) break;                                   \
        default: SPECIALISE_2(f, POTENTIAL, analog, uniform, __VA_ARGS__) break;                                      \
    }

STEP_FUNCTION adaptive_state state_at(int output, const float *psc, const float *s, const float *s_hat,
                                      const float *adaptation, int i) {
    if (output == POTENTIAL) return (adaptive_state){psc[i], s[i], 0.0f, 0.0f};
    return (adaptive_state){psc[i], s[i], s_hat[i], adaptation[i]};
}

/* -- forward ------------------------------------------------------------------------------------------------------ */

STEP_FUNCTION void advance(int output, int analog, int uniform, int m, const float *restrict x,
                           const float *restrict bias, const constants_t *c, float *restrict psc, float *restrict s,
                           float *restrict s_hat, float *restrict adaptation, float *restrict out) {
    for (int i = 0; i < m; i++) {
        adaptive_state n = state_at(output, psc, s, s_hat, adaptation, i);
        float u, theta;
        out[i] = adaptive_step(&n, constants_at(c, uniform, i), x[i], bias[i], output, analog, &u, &theta);
        psc[i] = n.psc, s[i] = n.s;
        if (output != POTENTIAL) s_hat[i] = n.s_hat, adaptation[i] = n.adaptation;
    }
}

static void forward_block(index_t b, int m, const void *x, void *out, const float *bias, int bias_stride,
                          const float *const *start, int start_stride, float *const *end, const float *constants,
                          int constants_stride, float *checkpoints, index_t T, index_t N, int dtype, int output,
                          int analog) {
    row_t *const rows = rows_of_thread();
    float *buffer = rows[0], *out_row = rows[1], *bias_row = rows[2], *state[STATES] = {0};
    const constants_t c = constants_of(constants, constants_stride, b, N);
    const int states = output == POTENTIAL ? 2 : STATES, uniform = !constants_stride;
    start_row(bias, bias_stride, b, m, bias_row);
    for (int k = 0; k < states; k++) state[k] = end[k] + b, start_row(start[k], start_stride, b, m, state[k]);
    for (index_t t = 0; t < T; t++) {
        const float *row = load_row(x, dtype, t * N + b, m, buffer);
        float *target = dtype == FLOAT32 ? (float *)out + t * N + b : out_row;
        if (checkpoints && t && t % SEGMENT == 0)
            for (int k = 0; k < STATES; k++)
                memcpy(checkpoints + ((t / SEGMENT - 1) * STATES + k) * N + b, state[k], m * sizeof **state);
        SPECIALISE(advance, output, analog, uniform, m, row, bias_row, &c, state[0], state[1], state[2], state[3],
                   target)
        if (dtype != FLOAT32) store_row(out, dtype, t * N + b, m, out_row);
    }
}

/* -- backward ----------------------------------------------------------------------------------------------------- */

STEP_FUNCTION void recompute(int output, int analog, int uniform, int m, const float *restrict x,
                             const float *restrict bias, const constants_t *c, float *restrict psc, float *restrict s,
                             float *restrict s_hat, float *restrict adaptation, float *restrict u,
                             float *restrict theta) {
    for (int i = 0; i < m; i++) {
        adaptive_state n = {psc[i], s[i], s_hat[i], adaptation[i]};
        adaptive_step(&n, constants_at(c, uniform, i), x[i], bias[i], SPIKES, analog, u + i, theta + i);
        psc[i] = n.psc, s[i] = n.s, s_hat[i] = n.s_hat, adaptation[i] = n.adaptation;
    }
    (void)output;
}

STEP_FUNCTION void retreat(int output, int analog, int uniform, int m, int detach, const float *restrict g_out,
                           const float *restrict u, const float *restrict theta, const float *restrict d,
                           const constants_t *c, float *restrict psc, float *restrict s, float *restrict s_hat,
                           float *restrict adaptation, float *restrict g_bias, float *restrict g_x) {
    for (int i = 0; i < m; i++) {
        adaptive_state g = {psc[i], s[i], s_hat[i], adaptation[i]};
        g_bias[i] += adaptive_step_backward(&g, constants_at(c, uniform, i), g_out[i], u[i], theta[i], d[i], output,
                                            analog, detach, g_x + i);
        psc[i] = g.psc, s[i] = g.s, s_hat[i] = g.s_hat, adaptation[i] = g.adaptation;
    }
}

static void backward_block(index_t b, int m, const void *grad_out, const float *const *grad_end, const void *x,
                           const float *bias, int bias_stride, const float *const *start, int start_stride,
                           const float *constants, int constants_stride, const float *checkpoints, void *grad_x,
                           float *grad_bias, float *const *grad_start, index_t T, index_t N, int dtype, int output,
                           int analog, int detach, int curve, float alpha, float gain) {
    row_t *const rows = rows_of_thread(), *const u = rows + 5, *const theta = u + SEGMENT;
    row_t *const state = theta + SEGMENT, *const g = state + STATES;
    float *g_bias = rows[0], *d = rows[1], *buffer = rows[2], *out_row = rows[3], *bias_row = rows[4];
    const constants_t c = constants_of(constants, constants_stride, b, N);
    const int uniform = !constants_stride;
    start_row(bias, bias_stride, b, m, bias_row);
    memset(g_bias, 0, m * sizeof *g_bias);
    for (int k = 0; k < STATES; k++)
        if (grad_end[k]) memcpy(g[k], grad_end[k] + b, m * sizeof **g);
        else memset(g[k], 0, m * sizeof **g);
    for (index_t segment = (T - 1) / SEGMENT; segment >= 0; segment--) {
        const index_t first = segment * SEGMENT, last = first + SEGMENT < T ? first + SEGMENT : T;
        if (output != POTENTIAL) { /* without spikes it is linear */
            for (int k = 0; k < STATES; k++)
                if (segment) memcpy(state[k], checkpoints + ((segment - 1) * STATES + k) * N + b, m * sizeof **g);
                else start_row(start[k], start_stride, b, m, state[k]);
            for (index_t t = first; t < last; t++) {
                const float *row = load_row(x, dtype, t * N + b, m, buffer);
                SPECIALISE_2(recompute, SPIKES, analog, uniform, m, row, bias_row, &c, state[0], state[1], state[2],
                             state[3], u[t - first], theta[t - first])
            }
        }
        for (index_t t = last - 1; t >= first; t--) {
            const float *g_out = buffer;
            float *target = dtype == FLOAT32 && grad_x ? (float *)grad_x + t * N + b : out_row;
            if (grad_out) g_out = load_row(grad_out, dtype, t * N + b, m, buffer);
            else memset(buffer, 0, m * sizeof *buffer);
            if (output != POTENTIAL) surrogate_row(curve, alpha, gain, m, u[t - first], 0.0f, d);
            SPECIALISE(retreat, output, analog, uniform, m, detach, g_out, u[t - first], theta[t - first], d, &c, g[0],
                       g[1], g[2], g[3], g_bias, target)
            if (dtype != FLOAT32 && grad_x) store_row(grad_x, dtype, t * N + b, m, out_row);
        }
    }
    if (grad_bias) memcpy(grad_bias + b, g_bias, m * sizeof *g_bias);
    for (int k = 0; k < STATES; k++)
        if (grad_start[k]) memcpy(grad_start[k] + b, g[k], m * sizeof **g);
}

/* -- what ctypes calls --------------------------------------------------------------------------------------------- */

EXPORT void adaptive_forward(const void *x, void *out, const float *bias, int bias_stride, const float *const *start,
                             int start_stride, float *const *end, const float *constants, int constants_stride,
                             float *checkpoints, index_t T, index_t N, int dtype, int output, int analog, int threads) {
    const index_t blocks = (N + BLOCK - 1) / BLOCK;
    make_present(out, T * N * (dtype == FLOAT32 ? 4 : 2), threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 2) if (threads > 1)
    for (index_t k = 0; k < blocks; k++) {
        const index_t b = k * BLOCK;
        forward_block(b, (int)(N - b < BLOCK ? N - b : BLOCK), x, out, bias, bias_stride, start, start_stride, end,
                      constants, constants_stride, checkpoints, T, N, dtype, output, analog);
    }
}

/* A gradient that is not wanted is NULL, and so is one that does not come. */
EXPORT void adaptive_backward(const void *grad_out, const float *const *grad_end, const void *x, const float *bias,
                              int bias_stride, const float *const *start, int start_stride, const float *constants,
                              int constants_stride, const float *checkpoints, void *grad_x, float *grad_bias,
                              float *const *grad_start, index_t T, index_t N, int dtype, int output, int analog,
                              int detach, int curve, float alpha, float gain, int threads) {
    const index_t blocks = (N + BLOCK - 1) / BLOCK;
    make_present(grad_x, T * N * (dtype == FLOAT32 ? 4 : 2), threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 2) if (threads > 1)
    for (index_t k = 0; k < blocks; k++) {
        const index_t b = k * BLOCK;
        backward_block(b, (int)(N - b < BLOCK ? N - b : BLOCK), grad_out, grad_end, x, bias, bias_stride, start,
                       start_stride, constants, constants_stride, checkpoints, grad_x, grad_bias, grad_start, T, N,
                       dtype, output, analog, detach, curve, alpha, gain);
    }
}
