/* Few distinct values as codes on the CPU: each element becomes its place in a table. Plain C, called through ctypes.

   Elements are compared by their bits, so that -0.0, NaN and all else come back as they were. Plane j of the codes, `bits`
   wide, holds the elements from j * B on, where B is the number of bytes: byte i has the codes of the elements i, B + i,
   2 B + i ... Loops over planes are plain loops over neighbours, which compilers vectorise. */

#include "cpu.h"

enum { ROW = 2048, SAMPLES = 512, UNKNOWN = 255 };

/* The functions for elements of one width. Threads share one table, which only grows: codes stay what they are. */
#define DEFINE_WIDTH(value_t, name)                                                                                   \
    static int name##_place(value_t x, const value_t *table, int count) {                                             \
        int k = 0;                                                                                                    \
        while (k < count && table[k] != x) k++;                                                                       \
        return k;                                                                                                     \
    }                                                                                                                 \
                                                                                                                      \
    /* Enter a value if there is room, or return 0. */                                                                \
    static int name##_enter(value_t x, value_t *table, int *count, int limit) {                                       \
        const int known = *count, place = name##_place(x, table, known);                                              \
        if (place == limit) return 0;                                                                                 \
        if (place == known) {                                                                                         \
            table[place] = x;                                                                                         \
            __atomic_store_n(count, known + 1, __ATOMIC_RELEASE);                                                     \
        }                                                                                                             \
        return 1;                                                                                                     \
    }                                                                                                                 \
                                                                                                                      \
    static int name##_sample(const sample_arguments *call) {                                                          \
        const value_t *x = call->x;                                                                                   \
        const index_t every = call->N < SAMPLES ? 1 : call->N / SAMPLES;                                              \
        int count = 0;                                                                                                \
        for (index_t i = 0; i < call->N; i += every)                                                                  \
            if (!name##_enter(x[i], call->table, &count, call->limit)) return 0;                                      \
        return count;                                                                                                 \
    }                                                                                                                 \
                                                                                                                      \
    static int name##_encode_row(const value_t *restrict x, int m, const value_t *restrict table, int count,          \
                                 uint8_t *restrict code) {                                                            \
        const value_t zero = table[0], one = table[count > 1];                                                        \
        uint8_t any = 0;                                                                                              \
        for (int i = 0; i < m; i++) code[i] = x[i] == zero ? 0 : x[i] == one ? 1 : UNKNOWN;                           \
        for (int k = 2; k < count; k++) {                                                                             \
            const value_t value = table[k];                                                                           \
            for (int i = 0; i < m; i++) code[i] = x[i] == value ? (uint8_t)k : code[i];                               \
        }                                                                                                             \
        for (int i = 0; i < m; i++) any |= code[i];                                                                   \
        return !(any & 128);                                                                                          \
    }                                                                                                                 \
                                                                                                                      \
    static int name##_encode(const encode_arguments *call) {                                                          \
        const int bits = call->bits, planes = 8 / bits, limit = 1 << bits;                                            \
        const index_t N = call->N, bytes = (N + planes - 1) / planes;                                                 \
        const value_t *x = call->x;                                                                                   \
        value_t *table = call->table;                                                                                 \
        uint8_t *codes = call->codes;                                                                                 \
        int count = call->count, failed = 0;                                                                          \
        _Pragma("omp parallel for num_threads(call->threads) schedule(static) if (call->threads > 1)")                \
        for (index_t start = 0; start < bytes; start += ROW) {                                                        \
            const int m = bytes - start < ROW ? (int)(bytes - start) : ROW;                                           \
            uint8_t code[ROW], *row = codes + start;                                                                  \
            memset(row, 0, m);                                                                                        \
            for (int j = 0; j < planes && !__atomic_load_n(&failed, __ATOMIC_RELAXED); j++) {                         \
                const index_t first = j * bytes + start, left = N - first;                                            \
                const int n = left < m ? (left < 0 ? 0 : (int)left) : m;                                              \
                while (n && !name##_encode_row(x + first, n, table, __atomic_load_n(&count, __ATOMIC_ACQUIRE), code)) { \
                    int i = 0, there;                                                                                 \
                    while (code[i] != UNKNOWN) i++;                                                                   \
                    _Pragma("omp critical(snn_ext_table)")                                                            \
                    there = name##_enter(x[first + i], table, &count, limit);                                         \
                    if (!there) {                                                                                     \
                        __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);                                               \
                        break;                                                                                        \
                    }                                                                                                 \
                }                                                                                                     \
                for (int i = 0; i < n; i++) row[i] |= (uint8_t)(code[i] << j * bits);                                 \
            }                                                                                                         \
        }                                                                                                             \
        return failed ? 0 : count;                                                                                    \
    }                                                                                                                 \
                                                                                                                      \
    STEP_FUNCTION void name##_decode_row(const uint8_t *restrict row, int m, int shift, int bits,                     \
                                         const value_t *restrict table, value_t *restrict x) {                        \
        const value_t a = table[0], b = table[1], c = table[2], d = table[3];                                         \
        const int mask = (1 << bits) - 1;                                                                             \
        if (bits == 1)                                                                                                \
            for (int i = 0; i < m; i++) x[i] = row[i] >> shift & 1 ? b : a;                                           \
        else if (bits == 2)                                                                                           \
            for (int i = 0; i < m; i++) {                                                                             \
                const int k = row[i] >> shift & 3;                                                                    \
                x[i] = k < 2 ? (k ? b : a) : (k == 2 ? c : d);                                                        \
            }                                                                                                         \
        else                                                                                                          \
            for (int i = 0; i < m; i++) x[i] = table[row[i] >> shift & mask];                                         \
    }                                                                                                                 \
                                                                                                                      \
    static void name##_decode(const decode_arguments *call) {                                                         \
        const int bits = call->bits, planes = 8 / bits;                                                               \
        const index_t N = call->N, bytes = (N + planes - 1) / planes;                                                 \
        const uint8_t *codes = call->codes;                                                                           \
        value_t *x = call->x;                                                                                         \
        make_present(x, N * (index_t)sizeof *x, call->threads);                                                       \
        _Pragma("omp parallel for num_threads(call->threads) schedule(static) if (call->threads > 1)")                \
        for (index_t start = 0; start < bytes; start += ROW) {                                                        \
            const int m = bytes - start < ROW ? (int)(bytes - start) : ROW;                                           \
            for (int j = 0; j < planes; j++) {                                                                        \
                const index_t first = j * bytes + start, left = N - first;                                            \
                const int n = left < m ? (left < 0 ? 0 : (int)left) : m;                                              \
                name##_decode_row(codes + start, n, j * bits, bits, call->table, x + first);                          \
            }                                                                                                         \
        }                                                                                                             \
    }

DEFINE_WIDTH(uint8_t, bytes1)
DEFINE_WIDTH(uint16_t, bytes2)
DEFINE_WIDTH(uint32_t, bytes4)
DEFINE_WIDTH(uint64_t, bytes8)

/* Fill the table from a sample of the elements. Return how many values it holds; 0 if there are more than `limit`. */
EXPORT int sample(const sample_arguments *call) {
    switch (call->width) {
        case 1: return bytes1_sample(call);
        case 2: return bytes2_sample(call);
        case 4: return bytes4_sample(call);
        default: return bytes8_sample(call);
    }
}

/* Fill codes and table, whose first `count` values are there. Return how many it holds; 0 if they are more than codes of
   `bits` can tell apart. */
EXPORT int encode(const encode_arguments *call) {
    switch (call->width) {
        case 1: return bytes1_encode(call);
        case 2: return bytes2_encode(call);
        case 4: return bytes4_encode(call);
        default: return bytes8_encode(call);
    }
}

EXPORT int decode(const decode_arguments *call) {
    switch (call->width) {
        case 1: bytes1_decode(call); break;
        case 2: bytes2_decode(call); break;
        case 4: bytes4_decode(call); break;
        default: bytes8_decode(call);
    }
    return 0;
}
