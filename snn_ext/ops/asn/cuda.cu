/* adaptive_spiking over [T][N] arrays on an NVIDIA GPU; compiled by NVRTC, one kernel in one variant at a time. A state is
   four arrays [N], a checkpoint [4][N]. Beside the macros of cuda.h these are fixed at compile time: OUTPUT
   (OUTPUT_POTENTIAL uses the first two states alone), ANALOG_INPUT (1: the input is the filtered current itself),
   CONSTANTS_STRIDE (0: constants [6], 1: [6][N]), DETACH_ADAPTATION, SURROGATE. */

#include "cuda.h"
#include "step.h"

enum { USED = OUTPUT == OUTPUT_POTENTIAL ? 2 : STATES, UNIFORM = !CONSTANTS_STRIDE, AHEAD = 4 };
/* Fewer resident blocks than the machine has room for: the registers go to states, constants and loads in flight. */
enum {
    BLOCKS_FORWARD = UNIFORM && 0 < STEPS && STEPS <= 4 && VECTOR <= 4 ? 8 : UNIFORM || STEPS ? 4 : 3,
    BLOCKS_BACKWARD = 0 < STEPS && STEPS <= 8 ? 4 : UNIFORM ? 3 : 2
};

/* The states of a thread's neurons, or their gradients. */
struct States { Vector<float> of[STATES]; };

STEP_FUNCTION adaptive_state get(const States &states, int i) {
    adaptive_state n = {states.of[0].at[i], states.of[1].at[i], 0.0f, 0.0f};
    if (USED == STATES) n.s_hat = states.of[2].at[i], n.adaptation = states.of[3].at[i];
    return n;
}

STEP_FUNCTION void put(States &states, int i, adaptive_state n) {
    states.of[0].at[i] = n.psc, states.of[1].at[i] = n.s;
    if (USED == STATES) states.of[2].at[i] = n.s_hat, states.of[3].at[i] = n.adaptation;
}

struct Constants { Vector<float> rows[6]; };

STEP_FUNCTION Constants load_constants(const float *array, index_t n, index_t N) {
    Constants c;
#pragma unroll
    for (int k = 0; k < 6; k++) c.rows[k] = UNIFORM ? all(array[k]) : load(array + k * N + n);
    return c;
}

STEP_FUNCTION adaptive_constants get(const Constants &c, int i) {
    adaptive_constants own = {c.rows[0].at[i], c.rows[1].at[i], c.rows[2].at[i],
                              c.rows[3].at[i], c.rows[4].at[i], c.rows[5].at[i]};
    return own;
}

/* -- forward ------------------------------------------------------------------------------------------------------ */

#if !BACKWARD
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_FORWARD)
adaptive_spiking_forward(FORWARD_PARAMETERS) {
    const index_t n = ((index_t)blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    const int steps = STEPS ? STEPS : (int)T;
    if (n >= N) return;
    const float *const from[] = {psc, s, s_hat, adaptation};
    const index_t strides[] = {psc_stride, s_stride, s_hat_stride, adaptation_stride};
    float *const to[] = {psc_end, s_end, s_hat_end, adaptation_end};
    const Constants c = load_constants(constants, n, N);
    const Vector<float> offset = start(bias, bias_stride, n);
    States states;
    for (int first = 0; first < steps; first += ROWS) {
        Vector<io_t> rows[ROWS];
#pragma unroll
        for (int k = 0; k < ROWS; k++)
            if (first + k < steps) rows[k] = load(current_seq + (first + k) * N + n);
#pragma unroll
        for (int k = 0; k < USED; k++) {
            if (first == 0) states.of[k] = start(from[k], strides[k], n);
            else if (checkpoints) store(checkpoints + ((first / SEGMENT - 1) * STATES + k) * N + n, states.of[k]);
        }
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            if (first + k >= steps) break;
            Vector<io_t> row;
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                adaptive_state own = get(states, i);
                float u, theta;
                row.at[i] = to_io(adaptive_step(&own, get(c, i), from_io(rows[k].at[i]), offset.at[i], OUTPUT,
                                                ANALOG_INPUT, &u, &theta));
                put(states, i, own);
            }
            store(out_seq + (first + k) * N + n, row);
        }
    }
#pragma unroll
    for (int k = 0; k < USED; k++) store(to[k] + n, states.of[k]);
}
#endif

/* -- backward ----------------------------------------------------------------------------------------------------- */

#if BACKWARD
/* A gradient that is not wanted is NULL, and so is that of a final state which does not come. All are of full size, so
   there is nothing to add up between neurons. */
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_BACKWARD)
adaptive_spiking_backward(BACKWARD_PARAMETERS) {
    const index_t n = ((index_t)blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    const int steps = STEPS ? STEPS : (int)T;
    if (n >= N) return;
    const float *const incoming[] = {grad_psc_end, grad_s_end, grad_s_hat_end, grad_adaptation_end};
    const float *const from[] = {psc, s, s_hat, adaptation};
    const index_t strides[] = {psc_stride, s_stride, s_hat_stride, adaptation_stride};
    float *const to[] = {grad_psc, grad_s, grad_s_hat, grad_adaptation};
    const float slope = (float)alpha, height = (float)gain;
    const Constants c = load_constants(constants, n, N);
    const Vector<float> offset = start(bias, bias_stride, n);
    Vector<float> bias_sum = all(0.0f);
    States grads;
#pragma unroll
    for (int k = 0; k < USED; k++) grads.of[k] = incoming[k] ? load(incoming[k] + n) : all(0.0f);
    for (int first = (steps - 1) / ROWS * ROWS; first >= 0; first -= ROWS) {
        Vector<float> u[ROWS], theta[ROWS];
        Vector<io_t> g[ROWS];
#pragma unroll
        for (int k = ROWS - 1; k >= 0 && k >= ROWS - AHEAD; k--)
            if (first + k < steps) g[k] = load(grad_out_seq + (first + k) * N + n);
        if (OUTPUT != OUTPUT_POTENTIAL) { /* without spikes it is linear */
            Vector<io_t> rows[ROWS];
            States states;
#pragma unroll
            for (int k = 0; k < ROWS; k++)
                if (first + k < steps) rows[k] = load(current_seq + (first + k) * N + n);
#pragma unroll
            for (int k = 0; k < USED; k++)
                states.of[k] = first ? load(checkpoints + ((first / SEGMENT - 1) * STATES + k) * N + n)
                                     : start(from[k], strides[k], n);
#pragma unroll
            for (int k = 0; k < ROWS; k++) {
                if (first + k >= steps) break;
#pragma unroll
                for (int i = 0; i < VECTOR; i++) {
                    adaptive_state own = get(states, i);
                    adaptive_step(&own, get(c, i), from_io(rows[k].at[i]), offset.at[i], OUTPUT, ANALOG_INPUT,
                                  &u[k].at[i], &theta[k].at[i]);
                    put(states, i, own);
                }
            }
        }
#pragma unroll
        for (int k = ROWS - 1; k >= 0; k--) {
            if (k >= AHEAD && first + k - AHEAD < steps) g[k - AHEAD] = load(grad_out_seq + (first + k - AHEAD) * N + n);
            if (first + k >= steps) continue;
            Vector<io_t> row;
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                const float distance = OUTPUT == OUTPUT_POTENTIAL ? 0.0f : u[k].at[i];
                const float d = OUTPUT == OUTPUT_POTENTIAL ? 0.0f : height * surrogate(distance, SURROGATE, slope);
                adaptive_state own = get(grads, i);
                float g_current;
                bias_sum.at[i] += adaptive_step_backward(&own, get(c, i), from_io(g[k].at[i]), distance,
                                                         OUTPUT == OUTPUT_POTENTIAL ? 0.0f : theta[k].at[i], d, OUTPUT,
                                                         ANALOG_INPUT, DETACH_ADAPTATION, &g_current);
                put(grads, i, own);
                row.at[i] = to_io(g_current);
            }
            if (grad_current_seq) store(grad_current_seq + (first + k) * N + n, row);
        }
    }
    if (grad_bias) store(grad_bias + n, bias_sum);
#pragma unroll
    for (int k = 0; k < USED; k++)
        if (to[k]) store(to[k] + n, grads.of[k]);
}
#endif
