/* Convolution of spikes on the CPU in two ways, which give the same bits. Plain C, called through ctypes.

   Arrays are channels-last: x [N][H][W][C], y [N][OH][OW][K]; weights are packed [K / LANES][KH][KW][C][LANES], padded
   with zeros. The sparse way lists the entries of x that are not 0 row by row, then each output pixel adds the rows of
   weights of the entries in its window. The dense way multiplies whole windows, PIXELS of them at a time. Sums are in
   registers. Either sum runs over the rows of the window, its columns and the channels in their order, with the same
   rounding, whatever the batch and the number of threads: an entry of 0 adds nothing. */

#include "cpu.h"

/* Floats of a vector, and output pixels of the dense way whose sums the registers hold beside a row of weights. */
#if defined __AVX512F__
#include <immintrin.h>
enum { WIDTH = 16, PIXELS = 12, DENSE_BLOCKS = 2 };
#define FMA(a, b, c) (vector) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#elif defined __AVX2__ && defined __FMA__
#include <immintrin.h>
enum { WIDTH = 8, PIXELS = 6, DENSE_BLOCKS = 1 };
#define FMA(a, b, c) (vector) _mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c))
#elif defined __aarch64__
#include <arm_neon.h>
enum { WIDTH = 4, PIXELS = 6, DENSE_BLOCKS = 1 };
#define FMA(a, b, c) (vector) vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b))
#else
enum { WIDTH = 4, PIXELS = 3, DENSE_BLOCKS = 1 };
#define FMA(a, b, c) ((c) + (a) * (b))
#endif

typedef float vector __attribute__((vector_size(WIDTH * sizeof(float)), aligned(sizeof(float)), may_alias));

/* PARTS: vectors of a block of outputs. GROUP: blocks of the sparse way. TILE: entries of x at a time. */
enum { PARTS = LANES / WIDTH, GROUP = 8 / PARTS, TILE = 32768 };

STEP_FUNCTION vector all(float value) { return value - (vector){0}; } /* adding 0 would not be free: -0 */

STEP_FUNCTION vector part(const float *weight, int i, index_t window) {
    return *(const vector *)(weight + i / PARTS * window + i % PARTS * WIDTH);
}

STEP_FUNCTION void store(const vector *sum, int vectors, const float *bias, float *y, index_t outputs) {
    float buffer[8 * 16], *target = outputs == vectors * WIDTH ? y : buffer;
    for (int i = 0; i < vectors; i++) ((vector *)target)[i] = sum[i] + ((const vector *)bias)[i];
    if (target == buffer) memcpy(y, buffer, outputs * sizeof *y);
}

/* -- sparse ------------------------------------------------------------------------------------------------------- */

/* The entries of rows of pixels that are not 0, by their place in the row: those of row h from h * W * C on, those of
   its pixel w from start[h * (W + 1) + w] to start[h * (W + 1) + w + 1]. */
typedef struct { int32_t *start, *place; } list_t;

#if defined __AVX2__ && !defined __AVX512F__
static uint8_t bits_set[256][8]; /* places of the bits that are set in a byte, the others behind them */

__attribute__((constructor)) static void fill_bits_set(void) {
    for (int byte = 0; byte < 256; byte++)
        for (int bit = 0, n = 0; bit < 8; bit++)
            if (byte >> bit & 1) bits_set[byte][n++] = (uint8_t)bit;
}
#endif

/* Write the places from `first` on of the entries of x that are not 0, NaN among them; return their number. Up to WIDTH - 1
   places behind them may be overwritten. */
static int32_t list_pixel(const float *restrict x, int32_t size, int32_t first, int32_t *restrict place) {
    int32_t n = 0, i = 0;
#if defined __AVX512F__
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i + WIDTH <= size; i += WIDTH) {
        const __mmask16 found = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), _mm512_setzero_ps(), _CMP_NEQ_UQ);
        const __m512i places = _mm512_add_epi32(order, _mm512_set1_epi32(first + i));
        _mm512_storeu_si512(place + n, _mm512_maskz_compress_epi32(found, places));
        n += __builtin_popcount(found);
    }
#elif defined __AVX2__
    for (; i + WIDTH <= size; i += WIDTH) {
        const int found = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), _mm256_setzero_ps(), _CMP_NEQ_UQ));
        const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bits_set[found]));
        _mm256_storeu_si256((__m256i *)(place + n), _mm256_add_epi32(order, _mm256_set1_epi32(first + i)));
        n += __builtin_popcount(found);
    }
#endif
    for (; i < size; i++) {
        place[n] = first + i;
        n += bits_of(x[i]) << 1 != 0;
    }
    return n;
}

/* List rows of pixels; return the number of entries. */
static index_t list_entries(const float *restrict x, index_t rows, const convolve_arguments *s, list_t list) {
    index_t total = 0;
    for (index_t h = 0; h < rows; h++) {
        const index_t row = h * s->W * s->C;
        int32_t *start = list.start + h * (s->W + 1), n = 0;
        for (index_t w = 0; w < s->W; w++) {
            start[w] = n;
            n += list_pixel(x + row + w * s->C, (int32_t)s->C, (int32_t)(w * s->C), list.place + row + n);
        }
        total += start[s->W] = n;
    }
    return total;
}

/* Add up `blocks` blocks of outputs of one pixel; their number is a constant where this is called. */
STEP_FUNCTION void add_window(int blocks, const convolve_arguments *s, index_t window, const float *restrict weight,
                              const float *restrict x, list_t list, index_t top, index_t left, const float *bias,
                              float *y, index_t outputs) {
    const index_t first = left < 0 ? 0 : left, last = left + s->KW > s->W ? s->W : left + s->KW;
    vector sum[GROUP * PARTS] = {0};
    for (index_t kh = 0; kh < s->KH; kh++) {
        const index_t h = top + kh * s->dilation_h;
        if (h < 0 || h >= s->H || first >= last) continue;
        const float *taps = weight + (kh * s->KW - left) * s->C * LANES, *restrict row = x + h * s->W * s->C;
        const int32_t *restrict place = list.place + h * s->W * s->C, *start = list.start + h * (s->W + 1);
        const int32_t end = start[last];
        for (int32_t j = start[first]; j < end; j++) {
            const vector value = all(row[place[j]]);
            const float *weights = taps + (index_t)place[j] * LANES;
            for (int i = 0; i < blocks * PARTS; i++) sum[i] = FMA(part(weights, i, window), value, sum[i]);
        }
    }
    store(sum, blocks * PARTS, bias, y, outputs);
}

static void convolve_sparse(const convolve_arguments *s, const float *weight, const float *x, list_t list,
                            const float *bias, index_t outputs, float *y) {
    const index_t window = s->KH * s->KW * s->C * LANES;
    for (index_t oh = 0; oh < s->OH; oh++)
        for (index_t ow = 0; ow < s->OW; ow++) {
            const index_t top = oh * s->stride_h - s->pad_h, left = ow * s->stride_w - s->pad_w;
            float *target = y + (oh * s->OW + ow) * s->K;
#define BLOCKS(n)                                                                                                     \
    case n: add_window(n < GROUP ? n : GROUP, s, window, weight, x, list, top, left, bias, target, outputs); break;
            switch ((outputs + LANES - 1) / LANES) {
                BLOCKS(1) BLOCKS(2) BLOCKS(3) BLOCKS(4) BLOCKS(5) BLOCKS(6) BLOCKS(7) BLOCKS(8)
            }
        }
}

/* -- dense -------------------------------------------------------------------------------------------------------- */

/* Images in their padding of zeros; without one they are used where they are. */
static const float *padded(const convolve_arguments *s, const float *x, index_t images, float *buffer) {
    const index_t H = s->H + 2 * s->pad_h, W = s->W + 2 * s->pad_w, row = s->W * s->C;
    if (!s->pad_h && !s->pad_w) return x;
    memset(buffer, 0, images * H * W * s->C * sizeof *buffer);
    for (index_t n = 0; n < images; n++)
        for (index_t h = 0; h < s->H; h++)
            memcpy(buffer + ((n * H + h + s->pad_h) * W + s->pad_w) * s->C, x + (n * s->H + h) * row, row * sizeof *x);
    return buffer;
}

/* Where the windows of all output pixels begin; the last one again and again until they fill a tile of PIXELS. */
static void list_windows(const convolve_arguments *s, const float *x, index_t images, const float **windows) {
    const index_t H = s->H + 2 * s->pad_h, W = s->W + 2 * s->pad_w;
    index_t i = 0;
    for (index_t n = 0; n < images; n++)
        for (index_t oh = 0; oh < s->OH; oh++)
            for (index_t ow = 0; ow < s->OW; ow++)
                windows[i++] = x + ((n * H + oh * s->stride_h) * W + ow * s->stride_w) * s->C;
    for (; i % PIXELS; i++) windows[i] = windows[i - 1];
}

/* Add up `blocks` blocks of outputs of PIXELS pixels; their number is a constant where this is called. */
STEP_FUNCTION void add_windows(int blocks, const convolve_arguments *s, index_t window, const float *restrict weight,
                               const float *const *windows, index_t pixels, const float *bias, float *y,
                               index_t outputs) {
    const index_t taps = s->KW * s->C, step = s->dilation_h * (s->W + 2 * s->pad_w) * s->C;
    const float *x[PIXELS];
    vector sum[PIXELS][DENSE_BLOCKS * PARTS] = {0};
    for (int p = 0; p < PIXELS; p++) x[p] = windows[p];
    for (index_t kh = 0; kh < s->KH; kh++) {
        for (index_t i = 0; i < taps; i++, weight += LANES) {
            vector row[DENSE_BLOCKS * PARTS];
            for (int j = 0; j < blocks * PARTS; j++) row[j] = part(weight, j, window);
            for (int p = 0; p < PIXELS; p++) {
                const vector value = all(x[p][i]);
                for (int j = 0; j < blocks * PARTS; j++) sum[p][j] = FMA(row[j], value, sum[p][j]);
            }
        }
        for (int p = 0; p < PIXELS; p++) x[p] += step;
    }
    for (index_t p = 0; p < PIXELS && p < pixels; p++) store(sum[p], blocks * PARTS, bias, y + p * s->K, outputs);
}

static void convolve_dense(const convolve_arguments *s, const float *const *windows, index_t pixels, float *y) {
    const index_t window = s->KH * s->KW * s->C * LANES;
    for (index_t k = 0, outputs; k < s->K; k += outputs) {
        const float *weight = s->weight + k / LANES * window, *bias = s->bias + k;
        outputs = s->K - k < DENSE_BLOCKS * LANES ? s->K - k : DENSE_BLOCKS * LANES;
        for (index_t i = 0; i < pixels; i += PIXELS)
            if (outputs > LANES)
                add_windows(DENSE_BLOCKS, s, window, weight, windows + i, pixels - i, bias, y + i * s->K + k, outputs);
            else add_windows(1, s, window, weight, windows + i, pixels - i, bias, y + i * s->K + k, outputs);
    }
}

/* -- both --------------------------------------------------------------------------------------------------------- */

/* Return 0, or 1 if there is no memory. Images with more entries than `limit` on average go the dense way. */
EXPORT int convolve(const convolve_arguments *call) {
    const convolve_arguments s = *call;
    const index_t size = s.H * s.W * s.C, images = size < TILE ? TILE / size : 1, tiles = (s.N + images - 1) / images;
    const index_t window = s.KH * s.KW * s.C * LANES, pixels = s.OH * s.OW;
    const index_t padded_size = (s.H + 2 * s.pad_h) * (s.W + 2 * s.pad_w) * s.C;
    int failed = 0;
#pragma omp parallel num_threads(s.threads) if (s.threads > 1)
    {
        const list_t list = {malloc(images * s.H * (s.W + 1) * sizeof *list.start),
                             malloc((images * size + WIDTH) * sizeof *list.place)};
        float *buffer = malloc(images * padded_size * sizeof *buffer);
        const float **windows = malloc((images * pixels + PIXELS) * sizeof *windows);
        if (!list.start || !list.place || !buffer || !windows) {
#pragma omp atomic write
            failed = 1;
        } else {
#pragma omp for schedule(static)
            for (index_t tile = 0; tile < tiles; tile++) {
                const index_t first = tile * images, some = s.N - first < images ? s.N - first : images;
                const float *x = s.x + first * size;
                float *y = s.y + first * pixels * s.K;
                if (list_entries(x, some * s.H, &s, list) > some * s.limit) {
                    list_windows(&s, padded(&s, x, some, buffer), some, windows);
                    convolve_dense(&s, windows, some * pixels, y);
                    continue;
                }
                for (index_t k = 0; k < s.K; k += GROUP * LANES) /* weights of a group go through the images of the tile */
                    for (index_t n = 0; n < some; n++) {
                        const list_t own = {list.start + n * s.H * (s.W + 1), list.place + n * size};
                        convolve_sparse(&s, s.weight + k / LANES * window, x + n * size, own, s.bias + k,
                                        s.K - k < GROUP * LANES ? s.K - k : GROUP * LANES, y + n * pixels * s.K + k);
                    }
            }
        }
        free(list.start), free(list.place), free(buffer), free(windows);
    }
    return failed;
}
