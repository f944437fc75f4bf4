/* Spikes of each step, and the synapses that they meet, on the CPU. Plain C, called through ctypes.

   One pass over x [T][N][M]: the samples in which a neuron fires are counted for a block of neurons, then multiplied by
   the synapses of each, in double, in LANES strands. These are whole numbers, so that the order does not matter. */

#include "cpu.h"

enum { BLOCK = 512, LANES = 8 };

static void count_step(const float *x, const double *fan_out, index_t N, index_t M, double *spikes, double *synapses) {
    double met[LANES] = {0}, total = 0.0;
    index_t found = 0;
    for (index_t b = 0; b < M; b += BLOCK) {
        const int m = (int)(M - b < BLOCK ? M - b : BLOCK);
        int32_t fired[BLOCK] = {0}, some = 0;
        for (index_t n = 0; n < N; n++) {
            const float *restrict row = x + n * M + b;
            for (int i = 0; i < m; i++) fired[i] += row[i] != 0.0f;
        }
        for (int i = 0; i < m; i++) some += fired[i];
        for (int i = 0; i + LANES <= m; i += LANES)
            for (int j = 0; j < LANES; j++) met[j] += fired[i + j] * fan_out[b + i + j];
        for (int i = m / LANES * LANES; i < m; i++) total += fired[i] * fan_out[b + i];
        found += some;
    }
    for (int j = 0; j < LANES; j++) total += met[j];
    *spikes = (double)found, *synapses = total;
}

EXPORT int count(const count_arguments *call) {
    const count_arguments s = *call;
#pragma omp parallel for num_threads(s.threads) schedule(dynamic) if (s.threads > 1)
    for (index_t t = 0; t < s.T; t++)
        count_step(s.x + t * s.N * s.M, s.fan_out, s.N, s.M, s.spikes + t, s.synapses + t);
    return 0;
}
