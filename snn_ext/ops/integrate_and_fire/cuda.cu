/* integrate_and_fire over [T][N] arrays on an NVIDIA GPU; compiled by NVRTC, one kernel in one variant at a time. Beside the
   macros of cuda.h these are fixed at compile time: THRESHOLDS_STRIDE (1: one for each step), THRESHOLDS_EACH (1: one for
   each neuron), HAS_SCALE (1: spikes are multiplied by scale[0]), HAS_NORM_GAIN (1: a channel's norm comes first), RESET, FIRE_AT_THRESHOLD, DETACH_RESET, SURROGATE, CHARGE (without a leak there is no decay). */

#include "cuda.h"
#include "step.h"

enum { AHEAD = 4 }; /* steps by which the backward pass loads incoming gradients before they are needed */

/* Fewer resident blocks than the machine has room for: the registers go to loads in flight. */
enum { BLOCKS_FORWARD = STEPS ? 8 : 4, BLOCKS_BACKWARD = STEPS ? 4 : 3 };

#define LEAKS (CHARGE != CHARGE_ADD)

/* A thread's constants of the leak. */
STEP_FUNCTION Vector<float> constants(const float *decay, index_t decay_stride, index_t n) {
    return LEAKS ? start(decay, decay_stride, n) : all(0.0f);
}

/* A thread's thresholds, where each neuron has its own. */
STEP_FUNCTION Vector<float> own_thresholds(const float *thresholds, index_t n) {
    return THRESHOLDS_EACH ? load(thresholds + n) : all(0.0f);
}

/* A neuron's channel follows from its place in memory, whatever the order of dimensions. */
struct Norm { Vector<float> gain, offset, center; };

STEP_FUNCTION Norm norm_of(const float *gain, const float *shift, const float *center, index_t channels, index_t stride,
                           index_t n) {
    Norm norm;
#pragma unroll
    for (int i = 0; HAS_NORM_GAIN && i < VECTOR; i++) {
        const index_t c = (n + i) / stride % channels;
        norm.gain.at[i] = gain[c];
        norm.center.at[i] = center[c];
        norm.offset.at[i] = norm_offset(center[c], gain[c], shift[c]);
    }
    return norm;
}

STEP_FUNCTION float input(const Norm &norm, int i, io_t x) {
    return HAS_NORM_GAIN ? normalised(from_io(x), norm.gain.at[i], norm.offset.at[i]) : from_io(x);
}

#define NORM(n) norm_of(norm_gain, norm_shift, norm_center, channels, channel_stride, n)

/* -- forward ------------------------------------------------------------------------------------------------------ */

#if !BACKWARD
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_FORWARD)
integrate_and_fire_forward(FORWARD_PARAMETERS) {
    const index_t n = ((index_t)blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    const int steps = STEPS ? STEPS : (int)T;
    if (n >= N) return;
    const float factor = HAS_SCALE ? scale[0] : 1.0f;
    const io_t on = to_io(factor), off = to_io(0.0f * factor);
    const Vector<float> constant = constants(decay, decay_stride, n), own_theta = own_thresholds(thresholds, n);
    const Norm norm = NORM(n);
    Vector<float> potential;
    for (int first = 0; first < steps; first += ROWS) {
        Vector<io_t> rows[ROWS];
#pragma unroll
        for (int k = 0; k < ROWS; k++)
            if (first + k < steps) rows[k] = load(x_seq + (first + k) * N + n);
        if (first == 0) potential = start(v, v_stride, n);
        else if (checkpoints) store(checkpoints + (first / SEGMENT - 1) * N + n, potential);
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            if (first + k >= steps) break;
            const float step_theta = thresholds[THRESHOLDS_STRIDE ? first + k : 0];
            Vector<io_t> out;
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                const float theta = THRESHOLDS_EACH ? own_theta.at[i] : step_theta;
                const float h = charge(potential.at[i], input(norm, i, rows[k].at[i]), constant.at[i], theta, CHARGE,
                                       RESET, FIRE_AT_THRESHOLD);
                const float s = fires(h, theta, FIRE_AT_THRESHOLD);
                out.at[i] = s != 0.0f ? on : off;
                potential.at[i] = reset(h, s, theta, RESET);
            }
            store(spike_seq + (first + k) * N + n, out);
        }
    }
    store(v_end + n, potential);
}
#endif

/* -- backward ----------------------------------------------------------------------------------------------------- */

#if BACKWARD
template <typename number> STEP_FUNCTION number warp_sum(number value) {
#pragma unroll
    for (int distance = LANES / 2; distance; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

/* The sum over the block, in thread 0; in the order of the warps. */
STEP_FUNCTION double block_sum(double value) {
    __shared__ double sums[WARPS];
    double sum = 0.0;
    value = warp_sum(value);
    if (threadIdx.x % LANES == 0) sums[threadIdx.x / LANES] = value;
    __syncthreads();
    for (int w = 0; threadIdx.x == 0 && w < WARPS; w++) sum += sums[w];
    __syncthreads();
    return sum;
}

/* Whether this is the last block to arrive. What the others wrote before is then visible. The counter starts at 0. */
STEP_FUNCTION bool is_last_block(unsigned *counter) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(counter, 1u) == gridDim.x - 1;
    __syncthreads();
    __threadfence();
    return last;
}

/* Each block takes every gridDim.x-th chunk of THREADS * VECTOR neurons. A gradient that is not wanted is NULL; that
   of the potential, as that of the decay, is [N] with stride 1, else a single element, a sum; that of the thresholds has
   their shape. Sums over neurons: float32 within a thread's neurons of one step, or a warp's, float64 from there on. The workspace, which starts at 0 and is there if sums are wanted, holds
   a counter of blocks and partial sums [thresholds, scale, v, decay][blocks]; the last block to arrive adds them up in the order
   of the blocks. So the same input gives the same bits. */
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_BACKWARD)
integrate_and_fire_backward(BACKWARD_PARAMETERS) {
    __shared__ float step_sums[ROWS][WARPS];
    const int steps = STEPS ? STEPS : (int)T, theta_count = THRESHOLDS_STRIDE ? steps : 1;
    double *const partial_sums = workspace + 1;
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const float factor = HAS_SCALE ? scale[0] : 1.0f, slope = (float)alpha, height = (float)gain;
    double theta_sum = 0.0, scale_sum = 0.0, v_sum = 0.0, decay_sum = 0.0;
    for (index_t chunk = blockIdx.x; chunk * (THREADS * VECTOR) < N; chunk += gridDim.x) {
        const index_t own = (chunk * THREADS + threadIdx.x) * VECTOR;
        const bool inside = own < N;
        const index_t n = inside ? own : N - VECTOR; /* those beyond the end repeat the last, and write nothing */
        Vector<float> c = grad_v_end ? load(grad_v_end + n) : all(0.0f);
        const Vector<float> constant = constants(decay, decay_stride, n), own_theta = own_thresholds(thresholds, n);
        Vector<float> g_decay = all(0.0f), g_theta = all(0.0f), g_gain = all(0.0f), g_shift = all(0.0f);
        const Norm norm = NORM(n);
        for (int first = (steps - 1) / ROWS * ROWS; first >= 0; first -= ROWS) {
            Vector<io_t> rows[ROWS], g[ROWS];
            Vector<float> h[ROWS], potential, entry;
#pragma unroll
            for (int k = 0; k < ROWS; k++)
                if (first + k < steps) rows[k] = load(x_seq + (first + k) * N + n);
#pragma unroll
            for (int k = ROWS - 1; k >= 0 && k >= ROWS - AHEAD; k--)
                if (first + k < steps) g[k] = load(grad_spike_seq + (first + k) * N + n);
            potential = first ? load(checkpoints + (first / SEGMENT - 1) * N + n) : start(v, v_stride, n);
            entry = potential;
#pragma unroll
            for (int k = 0; k < ROWS; k++) {
                if (first + k >= steps) break;
                const float step_theta = thresholds[THRESHOLDS_STRIDE ? first + k : 0];
#pragma unroll
                for (int i = 0; i < VECTOR; i++) {
                    const float theta = THRESHOLDS_EACH ? own_theta.at[i] : step_theta;
                    const float charged = charge(potential.at[i], input(norm, i, rows[k].at[i]), constant.at[i], theta,
                                                 CHARGE, RESET, FIRE_AT_THRESHOLD);
                    h[k].at[i] = charged;
                    potential.at[i] = reset(charged, fires(charged, theta, FIRE_AT_THRESHOLD), theta, RESET);
                }
            }
#pragma unroll
            for (int k = ROWS - 1; k >= 0; k--) {
                if (k >= AHEAD && first + k - AHEAD < steps) g[k - AHEAD] = load(grad_spike_seq + (first + k - AHEAD) * N + n);
                if (first + k >= steps) continue;
                const float step_theta = thresholds[THRESHOLDS_STRIDE ? first + k : 0];
                const float step_before = thresholds[THRESHOLDS_STRIDE && k ? first + k - 1 : 0];
                float terms = 0.0f, scale_terms = 0.0f;
                Vector<io_t> out;
#pragma unroll
                for (int i = 0; i < VECTOR; i++) {
                    const float theta = THRESHOLDS_EACH ? own_theta.at[i] : step_theta;
                    const float theta_before = THRESHOLDS_EACH ? own_theta.at[i] : step_before;
                    const float s = fires(h[k].at[i], theta, FIRE_AT_THRESHOLD), g_spike = from_io(g[k].at[i]);
                    const float d = height * surrogate(h[k].at[i] - theta, SURROGATE, slope);
                    float term, g_x;
                    c.at[i] = step_backward(h[k].at[i], s, c.at[i], HAS_SCALE ? g_spike * factor : g_spike, d, theta, RESET,
                                            DETACH_RESET, &term);
                    if (LEAKS) {
                        const float at = k ? h[k ? k - 1 : 0].at[i] : entry.at[i];
                        const float before = k ? reset(at, fires(at, theta_before, FIRE_AT_THRESHOLD), theta_before, RESET) : at;
                        float g;
                        c.at[i] = charge_backward(c.at[i], before, input(norm, i, rows[k].at[i]), constant.at[i], theta,
                                                  CHARGE, RESET, FIRE_AT_THRESHOLD, &g_x, &g, &term);
                        g_decay.at[i] += g;
                    } else g_x = c.at[i];
                    if (HAS_NORM_GAIN) {
                        g_gain.at[i] += g_x * (from_io(rows[k].at[i]) - norm.center.at[i]);
                        g_shift.at[i] += g_x;
                        g_x *= norm.gain.at[i];
                    }
                    if (THRESHOLDS_EACH) g_theta.at[i] += term;
                    else terms += term;
                    scale_terms += s * g_spike;
                    out.at[i] = to_io(g_x);
                }
                if (inside && grad_x_seq) store(grad_x_seq + (first + k) * N + n, out);
                if (!inside) terms = scale_terms = 0.0f;
                if (THRESHOLDS_STRIDE && grad_thresholds) {
                    terms = warp_sum(terms);
                    if (lane == 0) step_sums[k][warp] = terms;
                }
                if (!THRESHOLDS_STRIDE && !THRESHOLDS_EACH) theta_sum += terms;
                if (HAS_SCALE) scale_sum += scale_terms;
            }
            if (THRESHOLDS_STRIDE && grad_thresholds) {
                __syncthreads();
                if (threadIdx.x < ROWS && first + (int)threadIdx.x < steps) {
                    double *partial = partial_sums + (first + threadIdx.x) * (index_t)gridDim.x + blockIdx.x;
                    double sum = *partial;
                    for (int w = 0; w < WARPS; w++) sum += step_sums[threadIdx.x][w];
                    *partial = sum;
                }
                __syncthreads();
            }
        }
        if (inside && grad_v_stride) store(grad_v + n, c);
        if (THRESHOLDS_EACH && inside && grad_thresholds) store(grad_thresholds + n, g_theta);
        if (HAS_NORM_GAIN && inside && grad_norm_gain) store(grad_norm_gain + n, g_gain);
        if (HAS_NORM_GAIN && inside && grad_norm_shift) store(grad_norm_shift + n, g_shift);
        if (LEAKS && inside && grad_decay_stride) store(grad_decay + n, g_decay);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) v_sum += inside ? c.at[i] : 0.0f;
#pragma unroll
        for (int i = 0; LEAKS && i < VECTOR; i++) decay_sum += inside ? g_decay.at[i] : 0.0f;
    }
    if (!workspace) return;
    double *partial = partial_sums + theta_count * (index_t)gridDim.x + blockIdx.x;
    if (!THRESHOLDS_STRIDE && !THRESHOLDS_EACH && grad_thresholds) {
        theta_sum = block_sum(theta_sum);
        if (threadIdx.x == 0) partial_sums[blockIdx.x] = theta_sum;
    }
    if (HAS_SCALE && grad_scale) {
        scale_sum = block_sum(scale_sum);
        if (threadIdx.x == 0) partial[0] = scale_sum;
    }
    if (grad_v && !grad_v_stride) {
        v_sum = block_sum(v_sum);
        if (threadIdx.x == 0) partial[gridDim.x] = v_sum;
    }
    if (LEAKS && grad_decay && !grad_decay_stride) {
        decay_sum = block_sum(decay_sum);
        if (threadIdx.x == 0) partial[2 * gridDim.x] = decay_sum;
    }
    if (!is_last_block(reinterpret_cast<unsigned *>(workspace))) return;
    for (int column = warp; column < theta_count + 2 + LEAKS; column += WARPS) {
        float *result = column < theta_count ? (THRESHOLDS_EACH ? 0 : grad_thresholds)
                        : column == theta_count ? grad_scale
                        : column == theta_count + 1 ? (grad_v_stride ? 0 : grad_v)
                                                    : (grad_decay_stride ? 0 : grad_decay);
        if (!result) continue;
        double sum = 0.0;
        const volatile double *partials = partial_sums + column * (index_t)gridDim.x;
#pragma unroll 8
        for (unsigned b = lane; b < gridDim.x; b += LANES) sum += partials[b];
        sum = warp_sum(sum);
        if (lane == 0) result[column < theta_count ? column : 0] = (float)sum;
    }
}
#endif
