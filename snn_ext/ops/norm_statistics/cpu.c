/* Statistics of a batch for each channel, and the part of a norm's gradient that goes through them, added in place. Plain
   C for the CPU, called through ctypes.

   An element's channel follows from its place in memory, whatever the order of dimensions; a step has whole channels, so
   that time needs no counting. */

#include "cpu.h"

enum { BLOCK = 16384, STRANDS = 16 };

/* -- statistics: two passes over a channel, the second mostly out of the L2 cache --------------------------------------- */

/* Sum of x, or of the square of x - mean; differences and squares are float32, as in torch, sums float64. */
STEP_FUNCTION double sum_of(const float *restrict x, index_t m, float mean, int squared) {
    double strand[STRANDS] = {0}, sum = 0.0;
    index_t i = 0;
    for (; i + STRANDS <= m; i += STRANDS)
        for (int k = 0; k < STRANDS; k++) {
            const float d = x[i + k] - mean;
            strand[k] += squared ? d * d : x[i + k];
        }
    for (int k = 0; k < STRANDS; k++) sum += strand[k];
    for (; i < m; i++) {
        const float d = x[i] - mean;
        sum += squared ? d * d : x[i];
    }
    return sum;
}

/* x is contiguous: [samples][channels][stride]. */
EXPORT int collect(const collect_arguments *call) {
    const index_t step = call->channels * call->stride;
#pragma omp parallel for num_threads(call->threads) schedule(dynamic) if (call->threads > 1)
    for (index_t c = 0; c < call->channels; c++) {
        const float *x = call->x + c * call->stride;
        double sum = 0.0, squares = 0.0;
        for (index_t n = 0; n < call->samples; n++) sum += sum_of(x + n * step, call->stride, 0.0f, 0);
        const float mean = (float)(sum / (double)(call->samples * call->stride));
        for (index_t n = 0; n < call->samples; n++) squares += sum_of(x + n * step, call->stride, mean, 1);
        call->mean[c] = mean;
        call->squares[c] = (float)squares;
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
