/* adaptive_spiking over [T][N] arrays on the CPU; plain C, called through ctypes.

   As in integrate_and_fire a block of neurons goes through all time steps while its state stays in the cache. A state is
   four arrays [N], a checkpoint [4][N]; constants are six numbers, or six arrays [N] behind each other. */

#include "cpu.h"
#include "step.h"

enum { BLOCK = 2048 };
DEFINE_ROWS(2 * SEGMENT + 2 * STATES + 5)

typedef struct { adaptive_constants same; const float *rows; index_t N; } constants_t;

STEP_FUNCTION adaptive_constants constants_at(const constants_t *c, int uniform, index_t i) {
    const float *row = c->rows + i;
    const index_t N = c->N;
    if (uniform) return c->same;
    return (adaptive_constants){row[0], row[N], row[2 * N], row[3 * N], row[4 * N], row[5 * N]};
}

static constants_t constants_of(const float *array, index_t stride, index_t b, index_t N) {
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
        case OUTPUT_SPIKES: SPECIALISE_2(f, OUTPUT_SPIKES, analog, uniform, __VA_ARGS__) break;                                     \
        case OUTPUT_HEIGHTS: SPECIALISE_2(f, OUTPUT_HEIGHTS, analog, uniform, __VA_ARGS__) break;                                   \
        default: SPECIALISE_2(f, OUTPUT_POTENTIAL, analog, uniform, __VA_ARGS__) break;                                      \
    }

STEP_FUNCTION adaptive_state state_at(int output, const float *psc, const float *s, const float *s_hat,
                                      const float *adaptation, int i) {
    if (output == OUTPUT_POTENTIAL) return (adaptive_state){psc[i], s[i], 0.0f, 0.0f};
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
        if (output != OUTPUT_POTENTIAL) s_hat[i] = n.s_hat, adaptation[i] = n.adaptation;
    }
}

static void forward_block(const forward_arguments *call, index_t b, int m) {
    row_t *const rows = rows_of_thread();
    float *buffer = rows[0], *out_row = rows[1], *bias_row = rows[2], *state[STATES] = {0};
    float *const end[STATES] = {call->psc_end, call->s_end, call->s_hat_end, call->adaptation_end};
    const float *const start[STATES] = {call->psc, call->s, call->s_hat, call->adaptation};
    const index_t strides[STATES] = {call->psc_stride, call->s_stride, call->s_hat_stride, call->adaptation_stride};
    const index_t N = call->N;
    const constants_t c = constants_of(call->constants, call->constants_stride, b, N);
    const int dtype = call->dtype, uniform = !call->constants_stride;
    const int states = call->output == OUTPUT_POTENTIAL ? 2 : STATES;
    start_row(call->bias, call->bias_stride, b, m, bias_row);
    for (int k = 0; k < states; k++) state[k] = end[k] + b, start_row(start[k], strides[k], b, m, state[k]);
    for (index_t t = 0; t < call->T; t++) {
        const float *row = load_row(call->current_seq, dtype, t * N + b, m, buffer);
        float *target = dtype == FLOAT32 ? (float *)call->out_seq + t * N + b : out_row;
        if (call->checkpoints && t && t % SEGMENT == 0)
            for (int k = 0; k < STATES; k++)
                memcpy(call->checkpoints + ((t / SEGMENT - 1) * STATES + k) * N + b, state[k], m * sizeof **state);
        SPECIALISE(advance, call->output, call->analog_input, uniform, m, row, bias_row, &c, state[0], state[1],
                   state[2], state[3], target)
        if (dtype != FLOAT32) store_row(call->out_seq, dtype, t * N + b, m, out_row);
    }
}

EXPORT int forward(const forward_arguments *call) {
    make_present(call->out_seq, bytes_of(call->T * call->N, call->dtype), call->threads);
    FOR_EACH_BLOCK(forward_block)
    return 0;
}

/* -- backward ----------------------------------------------------------------------------------------------------- */

STEP_FUNCTION void recompute(int output, int analog, int uniform, int m, const float *restrict x,
                             const float *restrict bias, const constants_t *c, float *restrict psc, float *restrict s,
                             float *restrict s_hat, float *restrict adaptation, float *restrict u,
                             float *restrict theta) {
    for (int i = 0; i < m; i++) {
        adaptive_state n = {psc[i], s[i], s_hat[i], adaptation[i]};
        adaptive_step(&n, constants_at(c, uniform, i), x[i], bias[i], OUTPUT_SPIKES, analog, u + i, theta + i);
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

static void backward_block(const backward_arguments *call, index_t b, int m) {
    row_t *const rows = rows_of_thread(), *const u = rows + 5, *const theta = u + SEGMENT;
    row_t *const state = theta + SEGMENT, *const g = state + STATES;
    float *g_bias = rows[0], *d = rows[1], *buffer = rows[2], *out_row = rows[3], *bias_row = rows[4];
    const float *const start[STATES] = {call->psc, call->s, call->s_hat, call->adaptation};
    const index_t strides[STATES] = {call->psc_stride, call->s_stride, call->s_hat_stride, call->adaptation_stride};
    const float *const grad_end[STATES] = {call->grad_psc_end, call->grad_s_end, call->grad_s_hat_end,
                                           call->grad_adaptation_end};
    float *const grad_start[STATES] = {call->grad_psc, call->grad_s, call->grad_s_hat, call->grad_adaptation};
    const index_t N = call->N;
    const constants_t c = constants_of(call->constants, call->constants_stride, b, N);
    const int dtype = call->dtype, output = call->output, analog = call->analog_input;
    const int uniform = !call->constants_stride, detach = call->detach_adaptation;
    start_row(call->bias, call->bias_stride, b, m, bias_row);
    memset(g_bias, 0, m * sizeof *g_bias);
    for (int k = 0; k < STATES; k++)
        if (grad_end[k]) memcpy(g[k], grad_end[k] + b, m * sizeof **g);
        else memset(g[k], 0, m * sizeof **g);
    for (index_t segment = (call->T - 1) / SEGMENT; segment >= 0; segment--) {
        const index_t first = segment * SEGMENT, last = first + SEGMENT < call->T ? first + SEGMENT : call->T;
        if (output != OUTPUT_POTENTIAL) { /* without spikes it is linear */
            for (int k = 0; k < STATES; k++)
                if (segment) memcpy(state[k], call->checkpoints + ((segment - 1) * STATES + k) * N + b, m * sizeof **g);
                else start_row(start[k], strides[k], b, m, state[k]);
            for (index_t t = first; t < last; t++) {
                const float *row = load_row(call->current_seq, dtype, t * N + b, m, buffer);
                SPECIALISE_2(recompute, OUTPUT_SPIKES, analog, uniform, m, row, bias_row, &c, state[0], state[1],
                             state[2], state[3], u[t - first], theta[t - first])
            }
        }
        for (index_t t = last - 1; t >= first; t--) {
            const float *g_out = buffer;
            float *target = dtype == FLOAT32 && call->grad_current_seq ? (float *)call->grad_current_seq + t * N + b
                                                                       : out_row;
            if (call->grad_out_seq) g_out = load_row(call->grad_out_seq, dtype, t * N + b, m, buffer);
            else memset(buffer, 0, m * sizeof *buffer);
            if (output != OUTPUT_POTENTIAL)
                surrogate_row(call->surrogate, call->alpha, call->gain, m, u[t - first], 0.0f, d);
            SPECIALISE(retreat, output, analog, uniform, m, detach, g_out, u[t - first], theta[t - first], d, &c, g[0],
                       g[1], g[2], g[3], g_bias, target)
            if (dtype != FLOAT32 && call->grad_current_seq)
                store_row(call->grad_current_seq, dtype, t * N + b, m, out_row);
        }
    }
    if (call->grad_bias) memcpy(call->grad_bias + b, g_bias, m * sizeof *g_bias);
    for (int k = 0; k < STATES; k++)
        if (grad_start[k]) memcpy(grad_start[k] + b, g[k], m * sizeof **g);
}

/* A gradient that is not wanted is NULL, and so is one that does not come in. All are of full size. */
EXPORT int backward(const backward_arguments *call) {
    make_present(call->grad_current_seq, bytes_of(call->T * call->N, call->dtype), call->threads);
    FOR_EACH_BLOCK(backward_block)
    return 0;
}
