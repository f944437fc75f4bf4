/* Statistics of a batch for each channel, and the part of a norm's gradient that goes through them, added in place. Plain
   C for the CPU, called through ctypes.

   An element's channel follows from its place in memory, whatever the order of dimensions; a step has whole channels, so
   that time needs no counting. */

#include "cpu.h"

enum { BLOCK = 16384, STRANDS = 16 };

/* -- statistics: two passes over a channel, the second mostly out of the L2 cache --------------------------------------- */

/* Sum of x - mean, or of its square. */
STEP_FUNCTION double sum_of(const float *restrict x, index_t m, double mean, int squared) {
    double strand[STRANDS] = {0}, sum = 0.0;
    index_t i = 0;
    for (; i + STRANDS <= m; i += STRANDS)
        for (int k = 0; k < STRANDS; k++) {
            const double d = (double)x[i + k] - mean;
            strand[k] += squared ? d * d : d;
        }
    for (int k = 0; k < STRANDS; k++) sum += strand[k];
    for (; i < m; i++) sum += squared ? (x[i] - mean) * (x[i] - mean) : x[i] - mean;
    return sum;
}

static double sum_channel(const collect_arguments *call, index_t c, double mean, int squared) {
    const float *x = call->x + c * call->stride;
    const index_t step = call->channels * call->stride;
    double sum = 0.0;
    for (index_t n = 0; n < call->samples; n++)
        sum += squared ? sum_of(x + n * step, call->stride, mean, 1) : sum_of(x + n * step, call->stride, 0.0, 0);
    return sum;
}

/* x is contiguous: [samples][channels][stride]. */
EXPORT int collect(const collect_arguments *call) {
    const double count = (double)(call->samples * call->stride);
#pragma omp parallel for num_threads(call->threads) schedule(dynamic) if (call->threads > 1)
    for (index_t c = 0; c < call->channels; c++) {
        call->mean[c] = sum_channel(call, c, 0.0, 0) / count;
        call->squares[c] = sum_channel(call, c, call->mean[c], 1);
    }
    return 0;
}

/* -- gradient ------------------------------------------------------------------------------------------------------ */

static void add_block(const add_arguments *call, index_t b, int m) {
    const float *restrict x = call->x + b, *mean = call->mean, *slope = call->slope, *offset = call->offset;
    float *restrict grad = call->grad + b;
    const index_t channels = call->channels, stride = call->stride;
    index_t c = b / stride % channels, left = stride - b % stride;
    if (stride == 1) {
        for (index_t i = 0, run = channels - c; i < m; i += run, c = 0, run = channels) {
            if (run > m - i) run = m - i;
            for (index_t k = 0; k < run; k++)
                grad[i + k] += (x[i + k] - mean[c + k]) * slope[c + k] + offset[c + k];
        }
        return;
    }
    for (index_t i = 0; i < m; left = stride, c = c + 1 < channels ? c + 1 : 0) {
        const float own_mean = mean[c], own_slope = slope[c], own_offset = offset[c];
        for (const index_t end = i + left < m ? i + left : m; i < end; i++)
            grad[i] += (x[i] - own_mean) * own_slope + own_offset;
    }
}

EXPORT int add(const add_arguments *call) {
    FOR_EACH_BLOCK(add_block)
    return 0;
}
