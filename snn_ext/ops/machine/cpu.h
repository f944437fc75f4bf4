/* What the kernels for the CPU share: numbers of 16 bits, an exponential, rows of a block, fresh memory. */

#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#define STEP_FUNCTION static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

/* Neurons are cut into blocks of BLOCK. These are handed out to the threads of one OpenMP region: call a function with
   the arguments `call`, the first neuron of a block, and the number of its neurons. */
#define FOR_EACH_BLOCK(function, ...)                                                                                 \
    _Pragma("omp parallel for num_threads(call->threads) schedule(dynamic, 2) if (call->threads > 1)")                \
    for (index_t k = 0; k < block_count(call->N, BLOCK); k++)                                                         \
        function(call, k * BLOCK, (int)(call->N - k * BLOCK < BLOCK ? call->N - k * BLOCK : BLOCK), ##__VA_ARGS__);

/* Rows of a block, not on the stack: that is 64 KB in some threads. A function returns them, or the compiler would look
   up the thread's own at every use. They are a little longer than a power of two, or the same element of all rows would
   share one set of the L1 cache. */
#define DEFINE_ROWS(count)                                                                                            \
    typedef float row_t[BLOCK + 32];                                                                                  \
    static __attribute__((noinline)) row_t *rows_of_thread(void) {                                                    \
        static _Thread_local row_t rows[count];                                                                       \
        return rows;                                                                                                  \
    }

#include "declaration.h"

STEP_FUNCTION index_t block_count(index_t N, index_t block) { return (N + block - 1) / block; }

/* -- numbers ---------------------------------------------------------------------------------------------------- */

STEP_FUNCTION uint32_t bits_of(float f) { uint32_t u; memcpy(&u, &f, sizeof u); return u; }
STEP_FUNCTION float float_of(uint32_t u) { float f; memcpy(&f, &u, sizeof f); return f; }

/* exp(x) for x <= 0 to 2 ulp: 2^n times a polynomial (Cephes) on |r| <= ln(2) / 2; 0 where it would be subnormal. */
STEP_FUNCTION float exp_of_negative(float x) {
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves the rounded integer in the low bits */
    const float clamped = x < -87.0f ? -87.0f : x;
    const float shifted = clamped * 1.44269504f + round, n = shifted - round;
    const float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    p = p * float_of((bits_of(shifted) - bits_of(round) + 127u) << 23);
    return x < -87.0f ? 0.0f : p;
}

STEP_FUNCTION float from_bfloat16(uint16_t b) { return float_of((uint32_t)b << 16); }

STEP_FUNCTION uint16_t to_bfloat16(float f) { /* to nearest, ties to even */
    const uint32_t u = bits_of(f);
    return f != f ? 0x7fc0 : (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/* float16 by integer arithmetic, which every compiler vectorises; exact, subnormals, infinities and NaN included. */
STEP_FUNCTION float from_float16(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    const uint32_t normal = (magnitude << 13) + (112u << 23);
    const uint32_t subnormal = bits_of(float_of((magnitude << 13) + (113u << 23)) - float_of(113u << 23));
    const uint32_t u = magnitude < 0x0400u ? subnormal : magnitude < 0x7c00u ? normal : normal + (112u << 23);
    return float_of(sign | u);
}

STEP_FUNCTION uint16_t to_float16(float f) { /* to nearest, ties to even */
    const uint32_t u = bits_of(f), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f); /* an ulp of 0.5 is 2^-24 */
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    return (uint16_t)(sign | (magnitude >= 0x47800000u ? special : magnitude < 0x38800000u ? subnormal : normal));
}

STEP_FUNCTION float divide(float a, float b) { return a / b; }
STEP_FUNCTION float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

#include "surrogates.h"

/* -- rows of a block: m neurons at one time step, read as float32 and written in the dtype of the input ------------ */

static const float *load_row(const void *array, int dtype, index_t at, int m, float *buffer) {
    const uint16_t *half = (const uint16_t *)array + at;
    if (dtype == FLOAT32) return (const float *)array + at;
    if (dtype == FLOAT16) for (int i = 0; i < m; i++) buffer[i] = from_float16(half[i]);
    else for (int i = 0; i < m; i++) buffer[i] = from_bfloat16(half[i]);
    return buffer;
}

static void store_row(void *array, int dtype, index_t at, int m, const float *row) {
    uint16_t *half = (uint16_t *)array + at;
    if (dtype == FLOAT16) for (int i = 0; i < m; i++) half[i] = to_float16(row[i]);
    else for (int i = 0; i < m; i++) half[i] = to_bfloat16(row[i]);
}

static void start_row(const float *v, index_t v_stride, index_t at, int m, float *row) {
    if (v_stride) memcpy(row, v + at, m * sizeof *row);
    else for (int i = 0; i < m; i++) row[i] = v[0];
}

/* Derivatives of the surrogate at h - theta. */
#define SURROGATE_CASE(curve)                                                                                         \
    case curve: for (int i = 0; i < m; i++) d[i] = gain * surrogate(h[i] - theta, curve, alpha); break;

static void surrogate_row(int curve, float alpha, float gain, int m, const float *restrict h, float theta,
                          float *restrict d) {
    switch (curve) {
        SURROGATE_CASE(SIGMOID)
        SURROGATE_CASE(ATAN)
        SURROGATE_CASE(PIECEWISE_QUADRATIC)
        SURROGATE_CASE(PIECEWISE_EXP)
        SURROGATE_CASE(SOFT_SIGN)
        SURROGATE_CASE(SUPER_SPIKE)
        SURROGATE_CASE(ERF)
    }
}

/* -- memory -------------------------------------------------------------------------------------------------------- */

static index_t bytes_of(index_t elements, int dtype) { return elements * (dtype == FLOAT32 ? 4 : 2); }

/* A fresh large array costs a page fault for every 4 KB when it is first written. With huge pages it is one for every
   2 MB, and all threads take a share of them here, before the work, instead of one at a time during it. */
static void make_present(void *array, index_t bytes, int threads) {
#if defined(__linux__) && defined(MADV_HUGEPAGE) && defined(MADV_POPULATE_WRITE)
    const uintptr_t huge = (uintptr_t)1 << 21, start = ((uintptr_t)array + huge - 1) & ~(huge - 1);
    const index_t pages = ((index_t)((uintptr_t)array + (uintptr_t)bytes) - (index_t)start) >> 21;
    unsigned char there = 1;
    if (!array || pages < 2) return;
    for (index_t k = 0; k < pages && there; k++)
        if (mincore((void *)(start + (uintptr_t)k * huge), 1, &there)) return;
    if (there) return; /* memory that is used again */
    madvise((void *)start, (size_t)pages << 21, MADV_HUGEPAGE); /* advice, as below: if refused, nothing changes */
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (index_t k = 0; k < pages; k++) madvise((void *)(start + (uintptr_t)k * huge), huge, MADV_POPULATE_WRITE);
#endif
    (void)array, (void)bytes, (void)threads;
}
