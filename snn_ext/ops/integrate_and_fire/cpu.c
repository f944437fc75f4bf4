/* integrate_and_fire over [T][N] arrays on the CPU; plain C, called through ctypes.

   Neurons are cut into blocks of BLOCK; a block goes through all time steps while its state stays in the L1 cache (the
   charges of a segment, in the backward pass, in the L2 cache), and the inner loops over its neurons are left to the
   compiler's vectoriser. Blocks are handed out to the threads of one OpenMP region a call. The terms of a
   parameter's gradient are added up for each block, and the blocks in their order, so that the result does not depend on
   the number of threads. */

#include "cpu.h"
#include "step.h"

enum { BLOCK = 4096 };
enum { NORM_ROWS = 2 * SEGMENT + 8, NORM_PART = 1024 };
DEFINE_ROWS(NORM_ROWS + 6)

/* Call f with the kind of reset, the tie rule, and whether neurons have a threshold each as constants: each combination
   gets a branch-free loop. */
#define SPECIALISE(f, call, ...)                                                                                      \
    if ((call)->thresholds_each) SPECIALISE_RESET(f, call, 1, __VA_ARGS__)                                            \
    else SPECIALISE_RESET(f, call, 0, __VA_ARGS__)
#define SPECIALISE_RESET(f, call, each, ...)                                                                          \
    switch ((call)->reset * 2 + (call)->fire_at_threshold) {                                                          \
        case RESET_SUBTRACT * 2: f(RESET_SUBTRACT, 0, each, __VA_ARGS__); break;                                      \
        case RESET_SUBTRACT * 2 + 1: f(RESET_SUBTRACT, 1, each, __VA_ARGS__); break;                                  \
        case RESET_ZERO * 2: f(RESET_ZERO, 0, each, __VA_ARGS__); break;                                              \
        case RESET_ZERO * 2 + 1: f(RESET_ZERO, 1, each, __VA_ARGS__); break;                                          \
        case RESET_NONE * 2: case RESET_DELAYED * 2: f(RESET_NONE, 0, each, __VA_ARGS__); break;                      \
        default: f(RESET_NONE, 1, each, __VA_ARGS__); break;                                                          \
    }

/* The same for a leak as the hosts' neurons have it: one decay, one threshold, the resets and the tie rule of the host. */
#define SPECIALISE_HOST(f, call, ...)                                                                                 \
    switch ((call)->charge) {                                                                                         \
        case CHARGE_TAU: SPECIALISE_RULE(f, call, CHARGE_TAU, __VA_ARGS__) break;                                    \
        case CHARGE_TAU_INPUT: SPECIALISE_RULE(f, call, CHARGE_TAU_INPUT, __VA_ARGS__) break;                        \
        case CHARGE_RATE: SPECIALISE_RULE(f, call, CHARGE_RATE, __VA_ARGS__) break;                                  \
        case CHARGE_RATE_INPUT: SPECIALISE_RULE(f, call, CHARGE_RATE_INPUT, __VA_ARGS__) break;                      \
        default:                                                                                                      \
            switch ((call)->reset) {                                                                                  \
                case RESET_SUBTRACT: f(CHARGE_BETA, RESET_SUBTRACT, 0, __VA_ARGS__); break;                           \
                case RESET_ZERO: f(CHARGE_BETA, RESET_ZERO, 0, __VA_ARGS__); break;                                   \
                case RESET_NONE: f(CHARGE_BETA, RESET_NONE, 0, __VA_ARGS__); break;                                   \
                default: f(CHARGE_BETA, RESET_DELAYED, 0, __VA_ARGS__); break;                                        \
            }                                                                                                         \
    }
#define SPECIALISE_RULE(f, call, rule, ...)                                                                          \
    if ((call)->reset == RESET_SUBTRACT) f(rule, RESET_SUBTRACT, 1, __VA_ARGS__);                                     \
    else f(rule, RESET_ZERO, 1, __VA_ARGS__);

STEP_FUNCTION int is_hosts(const float *decay, index_t decay_stride, index_t each, int charge, int kind, int at) {
    const int beta = charge == CHARGE_BETA;
    return decay && !decay_stride && !each && at == !beta && (beta || kind == RESET_SUBTRACT || kind == RESET_ZERO);
}
#define IS_HOSTS(call)                                                                                                \
    is_hosts((call)->decay, (call)->decay_stride, (call)->thresholds_each, (call)->charge, (call)->reset,             \
             (call)->fire_at_threshold)

/* For any leak: whether neurons have a decay each, and for a delayed reset its kind, the tie rule and the thresholds. The
   leak is then a pass of its own over a row in the L1 cache, or there would be hundreds of loops. */
#define SPECIALISE_LEAK(f, call, ...)                                                                                 \
    switch ((call)->charge) {                                                                                         \
        case CHARGE_TAU: SPECIALISE_DECAY(f, call, CHARGE_TAU, RESET_NONE, 0, 0, __VA_ARGS__) break;                  \
        case CHARGE_TAU_INPUT: SPECIALISE_DECAY(f, call, CHARGE_TAU_INPUT, RESET_NONE, 0, 0, __VA_ARGS__) break;      \
        case CHARGE_RATE: SPECIALISE_DECAY(f, call, CHARGE_RATE, RESET_NONE, 0, 0, __VA_ARGS__) break;                \
        case CHARGE_RATE_INPUT: SPECIALISE_DECAY(f, call, CHARGE_RATE_INPUT, RESET_NONE, 0, 0, __VA_ARGS__) break;    \
        default:                                                                                                      \
            if ((call)->reset != RESET_DELAYED)                                                                       \
                SPECIALISE_DECAY(f, call, CHARGE_BETA, RESET_NONE, 0, 0, __VA_ARGS__)                                 \
            else switch ((call)->fire_at_threshold * 2 + (call)->thresholds_each) {                                   \
                case 0: SPECIALISE_DECAY(f, call, CHARGE_BETA, RESET_DELAYED, 0, 0, __VA_ARGS__) break;               \
                case 1: SPECIALISE_DECAY(f, call, CHARGE_BETA, RESET_DELAYED, 0, 1, __VA_ARGS__) break;               \
                case 2: SPECIALISE_DECAY(f, call, CHARGE_BETA, RESET_DELAYED, 1, 0, __VA_ARGS__) break;               \
                default: SPECIALISE_DECAY(f, call, CHARGE_BETA, RESET_DELAYED, 1, 1, __VA_ARGS__) break;              \
            }                                                                                                         \
    }
#define SPECIALISE_DECAY(f, call, rule, kind, at, each, ...)                                                          \
    if ((call)->decay_stride) f(rule, 1, kind, at, each, __VA_ARGS__);                                                \
    else f(rule, 0, kind, at, each, __VA_ARGS__);

/* -- norm: gain and shift of channels, as rows over the neurons of a block, then y in place of x -------------------- */

enum { GAIN, OFFSET, CENTER, NORMALISED, GRAD_GAIN, GRAD_SHIFT };

/* A neuron's channel follows from its place in memory, whatever the order of dimensions. */
static void spread(const float *restrict of_channels, index_t channels, index_t stride, index_t b, int m,
                   float *restrict row) {
    index_t c = b / stride % channels, left = stride - b % stride;
    if (stride == 1) {
        for (index_t i = 0, run = channels - c; i < m; i += run, c = 0, run = channels) {
            if (run > m - i) run = m - i;
            memcpy(row + i, of_channels + c, run * sizeof *row);
        }
        return;
    }
    for (index_t i = 0; i < m; left = stride, c = c + 1 < channels ? c + 1 : 0)
        for (const index_t end = i + left < m ? i + left : m; i < end; i++) row[i] = of_channels[c];
}

static void prepare_norm(const float *gain, const float *shift, const float *center, index_t channels, index_t stride,
                         index_t b, int m, row_t *norm) {
    spread(gain, channels, stride, b, m, norm[GAIN]);
    spread(shift, channels, stride, b, m, norm[OFFSET]);
    spread(center, channels, stride, b, m, norm[CENTER]);
    for (int i = 0; i < m; i++) norm[OFFSET][i] = norm_offset(norm[CENTER][i], norm[GAIN][i], norm[OFFSET][i]);
}

static const float *normalise(row_t *norm, int m, const float *restrict x) {
    const float *restrict gain = norm[GAIN], *restrict offset = norm[OFFSET];
    float *restrict y = norm[NORMALISED];
    for (int i = 0; i < m; i++) y[i] = normalised(x[i], gain[i], offset[i]);
    return y;
}

/* The gradient of y becomes that of x, in place. */
static void normalise_back(row_t *norm, int m, const float *restrict x, float *restrict grad) {
    const float *restrict gain = norm[GAIN], *restrict center = norm[CENTER];
    float *restrict g_gain = norm[GRAD_GAIN], *restrict g_shift = norm[GRAD_SHIFT];
    for (int i = 0; i < m; i++) {
        g_gain[i] += grad[i] * (x[i] - center[i]);
        g_shift[i] += grad[i];
        grad[i] *= gain[i];
    }
}

/* Go through a block in parts that are small enough for the rows of a norm to stay in the L1 cache, too. */
#define IN_PARTS(function, call, b, m, ...)                                                                           \
    for (int part = (call)->norm_gain ? NORM_PART : m, i = 0; i < m; i += part)                                       \
        function(call, b + i, m - i < part ? m - i : part, ##__VA_ARGS__);

#define PREPARE_NORM(call, b, m, norm)                                                                                \
    prepare_norm((call)->norm_gain, (call)->norm_shift, (call)->norm_center, (call)->channels, (call)->channel_stride, \
                 b, m, norm)

/* -- forward ------------------------------------------------------------------------------------------------------ */

STEP_FUNCTION void advance(int kind, int at, int each, int m, const float *restrict x, float *restrict v,
                           const float *restrict theta, float *restrict spikes, float on, float off) {
    for (int i = 0; i < m; i++) {
        const float level = theta[each ? i : 0], h = v[i] + x[i], s = fires(h, level, at);
        spikes[i] = s != 0.0f ? on : off;
        v[i] = reset(h, s, level, kind);
    }
}

STEP_FUNCTION void advance_leaky(int rule, int kind, int at, int m, const float *restrict x, float *restrict v, float decay,
                                 float theta, float *restrict spikes, float on, float off) {
    for (int i = 0; i < m; i++) {
        const float h = charge(v[i], x[i], decay, theta, rule, kind, at), s = fires(h, theta, at);
        spikes[i] = s != 0.0f ? on : off;
        v[i] = reset(h, s, theta, kind);
    }
}

/* Charge v with a leak. */
STEP_FUNCTION void leak(int rule, int decays, int kind, int at, int each, int m, const float *restrict x,
                        float *restrict v, const float *restrict decay, const float *restrict theta) {
    for (int i = 0; i < m; i++)
        v[i] = charge(v[i], x[i], decay[decays ? i : 0], theta[each ? i : 0], rule, kind, at);
}

/* Fire and reset where v is charged. */
STEP_FUNCTION void settle(int kind, int at, int each, int m, float *restrict v, const float *restrict theta,
                          float *restrict spikes, float on, float off) {
    for (int i = 0; i < m; i++) {
        const float level = theta[each ? i : 0], s = fires(v[i], level, at);
        spikes[i] = s != 0.0f ? on : off;
        v[i] = reset(v[i], s, level, kind);
    }
}

/* The threshold of a step, or those of the neurons from b on. */
#define THETA(call, t, b) ((call)->thresholds + (t) * (call)->thresholds_stride + (b) * (call)->thresholds_each)

static void forward_part(const forward_arguments *call, index_t b, int m) {
    row_t *const rows = rows_of_thread(), *const norm = call->norm_gain ? rows + NORM_ROWS : NULL;
    float *buffer = rows[0], *out = rows[1], *v = call->v_end + b;
    const index_t N = call->N;
    const int dtype = call->dtype;
    const float on = call->scale ? call->scale[0] : 1.0f, off = 0.0f * on;
    start_row(call->v, call->v_stride, b, m, v);
    if (norm) PREPARE_NORM(call, b, m, norm);
    for (index_t t = 0; t < call->T; t++) {
        const float *row = load_row(call->x_seq, dtype, t * N + b, m, buffer);
        const float *theta = THETA(call, t, b);
        if (norm) row = normalise(norm, m, row);
        float *target = dtype == FLOAT32 ? (float *)call->spike_seq + t * N + b : out;
        if (call->checkpoints && t && t % SEGMENT == 0)
            memcpy(call->checkpoints + (t / SEGMENT - 1) * N + b, v, m * sizeof *v);
        if (IS_HOSTS(call))
            SPECIALISE_HOST(advance_leaky, call, m, row, v, call->decay[0], theta[0], target, on, off)
        else if (call->decay) {
            SPECIALISE_LEAK(leak, call, m, row, v, call->decay + b * call->decay_stride, theta)
            SPECIALISE(settle, call, m, v, theta, target, on, off)
        } else SPECIALISE(advance, call, m, row, v, theta, target, on, off)
        if (dtype != FLOAT32) store_row(call->spike_seq, dtype, t * N + b, m, out);
    }
}

static void forward_block(const forward_arguments *call, index_t b, int m) { IN_PARTS(forward_part, call, b, m) }

EXPORT int forward(const forward_arguments *call) {
    make_present(call->spike_seq, bytes_of(call->T * call->N, call->dtype), call->threads);
    make_present(call->v_end, call->N * 4, call->threads);
    FOR_EACH_BLOCK(forward_block)
    return 0;
}

/* -- backward ----------------------------------------------------------------------------------------------------- */

STEP_FUNCTION void recompute(int kind, int at, int each, int m, const float *restrict x, float *restrict v,
                             const float *restrict theta, float *restrict h_row) {
    for (int i = 0; i < m; i++) {
        const float level = theta[each ? i : 0], h = v[i] + x[i];
        h_row[i] = h;
        v[i] = reset(h, fires(h, level, at), level, kind);
    }
}

/* With a leak, from one row to the next: all potentials of a segment are kept. */
STEP_FUNCTION void recompute_leaky(int rule, int kind, int at, int m, const float *restrict x, const float *restrict v,
                                   float decay, float theta, float *restrict h_row, float *restrict after) {
    for (int i = 0; i < m; i++) {
        const float h = charge(v[i], x[i], decay, theta, rule, kind, at);
        h_row[i] = h;
        after[i] = reset(h, fires(h, theta, at), theta, kind);
    }
}

/* The same in two passes. */
STEP_FUNCTION void leak_again(int rule, int decays, int kind, int at, int each, int m, const float *restrict x,
                              const float *restrict v, const float *restrict decay, const float *restrict theta,
                              float *restrict h) {
    for (int i = 0; i < m; i++)
        h[i] = charge(v[i], x[i], decay[decays ? i : 0], theta[each ? i : 0], rule, kind, at);
}

STEP_FUNCTION void settle_again(int kind, int at, int each, int m, const float *restrict h, const float *restrict theta,
                                float *restrict v) {
    for (int i = 0; i < m; i++) {
        const float level = theta[each ? i : 0];
        v[i] = reset(h[i], fires(h[i], level, at), level, kind);
    }
}

/* c: gradient of the potential, after the step on entry, before it on return. With sums, h is overwritten by s * g and d
   by the terms of the threshold's gradient: what is still to be summed. */
STEP_FUNCTION void retreat(int kind, int at, int each, int m, int detach_reset, int sums, float *restrict h, float *restrict d,
                           const float *restrict g, float scale, const float *restrict theta, float *restrict c,
                           float *restrict grad_x) {
    for (int i = 0; i < m; i++) {
        const float level = theta[each ? i : 0], s = fires(h[i], level, at);
        float term;
        const float e = step_backward(h[i], s, c[i], g[i] * scale, d[i], level, kind, detach_reset, &term);
        grad_x[i] = c[i] = e;
        if (sums) {
            h[i] = s * g[i];
            d[i] = term;
        }
    }
}

/* Back through the charge of a leak, with v from before the step: e is the gradient of h on entry, that of v on return. */
STEP_FUNCTION void leak_back(int rule, int decays, int kind, int at, int each, int m, int sums, const float *restrict x,
                             const float *restrict v, const float *restrict decay, const float *restrict theta,
                             float *restrict e, float *restrict grad_x, float *restrict d, float *restrict g_decay) {
    for (int i = 0; i < m; i++) {
        const float level = theta[each ? i : 0];
        float g_x, term = 0.0f, g_theta = 0.0f;
        e[i] = charge_backward(e[i], v[i], x[i], decay[decays ? i : 0], level, rule, kind, at, &g_x, &term, &g_theta);
        grad_x[i] = g_x;
        if (sums) {
            d[i] += g_theta;
            g_decay[i] += term;
        }
    }
}

/* The surrogate's derivative at h - theta; where each neuron has its own threshold, by a row of differences, for which
   there is room. */
static void slopes(const backward_arguments *call, int m, const float *restrict h, const float *restrict theta,
                   float *restrict differences, float *restrict d) {
    if (!call->thresholds_each) {
        surrogate_row(call->surrogate, call->alpha, call->gain, m, h, theta[0], d);
        return;
    }
    for (int i = 0; i < m; i++) differences[i] = h[i] - theta[i];
    surrogate_row(call->surrogate, call->alpha, call->gain, m, differences, 0.0f, d);
}

STEP_FUNCTION void add_row(int m, const float *restrict row, float *restrict sums) {
    for (int i = 0; i < m; i++) sums[i] += row[i];
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

STEP_FUNCTION index_t threshold_count(const backward_arguments *call) { return call->thresholds_stride ? call->T : 1; }

/* A block has a row of sums over its neurons, for the gradients of [thresholds], scale, and a potential and a decay
   of one element. */
STEP_FUNCTION index_t sum_count(const backward_arguments *call) { return threshold_count(call) + 3; }

static void backward_part(const backward_arguments *call, index_t b, int m, double *sum_rows) {
    const int sums = call->grad_thresholds || call->grad_scale || call->grad_decay;
    row_t *const rows = rows_of_thread(), *const h = rows + 7, *const before = h + SEGMENT;
    row_t *const norm = call->norm_gain ? rows + NORM_ROWS : NULL;
    float *c = rows[0], *v = rows[1], *d = rows[2], *buffer = rows[3], *out = rows[4], *g_decay = rows[5];
    float *const g_theta = call->grad_thresholds && call->thresholds_each ? rows[6] : NULL;
    const float *const decay = call->decay ? call->decay + b * call->decay_stride : NULL;
    double *const theta_sums = sum_rows + b / BLOCK * sum_count(call), *const scale_sum = theta_sums + threshold_count(call);
    const index_t N = call->N;
    const int dtype = call->dtype;
    const float scale = call->scale ? call->scale[0] : 1.0f;
    if (call->grad_v_end) memcpy(c, call->grad_v_end + b, m * sizeof *c);
    else memset(c, 0, m * sizeof *c);
    if (decay) memset(g_decay, 0, m * sizeof *g_decay);
    if (g_theta) memset(g_theta, 0, m * sizeof *g_theta);
    if (norm) {
        PREPARE_NORM(call, b, m, norm);
        memset(norm[GRAD_GAIN], 0, m * sizeof **norm);
        memset(norm[GRAD_SHIFT], 0, m * sizeof **norm);
    }
    for (index_t segment = (call->T - 1) / SEGMENT; segment >= 0; segment--) {
        const index_t first = segment * SEGMENT, last = first + SEGMENT < call->T ? first + SEGMENT : call->T;
        float *const entry = decay ? before[0] : v;
        if (segment) memcpy(entry, call->checkpoints + (segment - 1) * N + b, m * sizeof *entry);
        else start_row(call->v, call->v_stride, b, m, entry);
        for (index_t t = first; t < last; t++) {
            const float *row = load_row(call->x_seq, dtype, t * N + b, m, buffer);
            const float *theta = THETA(call, t, b);
            if (norm) row = normalise(norm, m, row);
            if (IS_HOSTS(call))
                SPECIALISE_HOST(recompute_leaky, call, m, row, before[t - first], decay[0], theta[0], h[t - first],
                                 before[t - first + 1])
            else if (decay) {
                SPECIALISE_LEAK(leak_again, call, m, row, before[t - first], decay, theta, h[t - first])
                SPECIALISE(settle_again, call, m, h[t - first], theta, before[t - first + 1])
            } else SPECIALISE(recompute, call, m, row, v, theta, h[t - first])
        }
        for (index_t t = last - 1; t >= first; t--) {
            const float *theta = THETA(call, t, b), *g = buffer;
            float *h_row = h[t - first];
            float *target = dtype == FLOAT32 && call->grad_x_seq ? (float *)call->grad_x_seq + t * N + b : out;
            if (call->grad_spike_seq) g = load_row(call->grad_spike_seq, dtype, t * N + b, m, buffer);
            else memset(buffer, 0, m * sizeof *buffer);
            slopes(call, m, h_row, theta, out, d);
            if (call->detach_reset) {
                if (sums) SPECIALISE(retreat, call, m, 1, 1, h_row, d, g, scale, theta, c, target)
                else SPECIALISE(retreat, call, m, 1, 0, h_row, d, g, scale, theta, c, target)
            } else {
                if (sums) SPECIALISE(retreat, call, m, 0, 1, h_row, d, g, scale, theta, c, target)
                else SPECIALISE(retreat, call, m, 0, 0, h_row, d, g, scale, theta, c, target)
            }
            if (decay) {
                const float *row = load_row(call->x_seq, dtype, t * N + b, m, buffer);
                if (norm) row = normalise(norm, m, row);
                if (sums) SPECIALISE_LEAK(leak_back, call, m, 1, row, before[t - first], decay, theta, c, target, d, g_decay)
                else SPECIALISE_LEAK(leak_back, call, m, 0, row, before[t - first], decay, theta, c, target, d, g_decay)
            }
            if (norm) normalise_back(norm, m, load_row(call->x_seq, dtype, t * N + b, m, buffer), target);
            if (dtype != FLOAT32 && call->grad_x_seq) store_row(call->grad_x_seq, dtype, t * N + b, m, out);
            if (g_theta) add_row(m, d, g_theta);
            else if (call->grad_thresholds) theta_sums[t * call->thresholds_stride] += sum_row(d, m);
            if (call->grad_scale) *scale_sum += sum_row(h_row, m);
        }
    }
    if (norm && call->grad_norm_gain) memcpy(call->grad_norm_gain + b, norm[GRAD_GAIN], m * sizeof **norm);
    if (norm && call->grad_norm_shift) memcpy(call->grad_norm_shift + b, norm[GRAD_SHIFT], m * sizeof **norm);
    if (g_theta) memcpy(call->grad_thresholds + b, g_theta, m * sizeof *g_theta);
    if (call->grad_v && !call->grad_v_stride) scale_sum[1] += sum_row(c, m);
    else if (call->grad_v) memcpy(call->grad_v + b, c, m * sizeof *c);
    if (call->grad_decay && !call->grad_decay_stride) scale_sum[2] += sum_row(g_decay, m);
    else if (call->grad_decay) memcpy(call->grad_decay + b, g_decay, m * sizeof *g_decay);
}

static void backward_block(const backward_arguments *call, index_t b, int m, double *sum_rows) {
    IN_PARTS(backward_part, call, b, m, sum_rows)
}

/* Add one column of the blocks' sums in their order. */
static float add_blocks(const backward_arguments *call, const double *sums, index_t column) {
    double sum = 0.0;
    for (index_t k = 0; k < block_count(call->N, BLOCK); k++) sum += sums[k * sum_count(call) + column];
    return (float)sum;
}

/* A gradient that is not wanted is NULL. Those of potential and decay are [N] or, with stride 0, a single element: a sum.
   That of the thresholds has their shape. */
EXPORT int backward(const backward_arguments *call) {
    const index_t thetas = threshold_count(call);
    double *const sums = calloc(block_count(call->N, BLOCK) * sum_count(call), sizeof *sums);
    if (!sums) return 1;
    make_present(call->grad_x_seq, bytes_of(call->T * call->N, call->dtype), call->threads);
    FOR_EACH_BLOCK(backward_block, sums)
    for (index_t t = 0; call->grad_thresholds && !call->thresholds_each && t < thetas; t++)
        call->grad_thresholds[t] = add_blocks(call, sums, t);
    if (call->grad_scale) *call->grad_scale = add_blocks(call, sums, thetas);
    if (call->grad_v && !call->grad_v_stride) *call->grad_v = add_blocks(call, sums, thetas + 1);
    if (call->grad_decay && !call->grad_decay_stride) *call->grad_decay = add_blocks(call, sums, thetas + 2);
    free(sums);
    return 0;
}
