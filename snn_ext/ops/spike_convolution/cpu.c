/* Convolution of spikes on the CPU: only what is not 0 is multiplied. Plain C, called through ctypes.

   Arrays are channels-last: x [N][H][W][C], y [N][OH][OW][K]; weights are packed [K / LANES][KH][KW][C][LANES], padded
   with zeros. First the entries of x that are not 0 are listed row by row, then each output pixel adds the rows of
   weights of the entries in its window, with LANES sums in registers. Its sum runs over the window and the channels in
   their order, whatever the batch and the number of threads. */

#include "cpu.h"

enum { VECTOR = 8, VECTORS = LANES / VECTOR, TILE = 32768 }; /* TILE: entries listed at a time */

typedef float vector __attribute__((vector_size(VECTOR * sizeof(float)), aligned(sizeof(float))));


/* The entries of rows of pixels that are not 0: those of row h from h * W * C on, those of its pixel w from
   start[h * (W + 1) + w] to start[h * (W + 1) + w + 1]. */
typedef struct { int32_t *start, *place; float *value; } list_t;

static void list_entries(const float *restrict x, index_t rows, const convolve_arguments *s, list_t list) {
    for (index_t h = 0; h < rows; h++) {
        const float *restrict row = x + h * s->W * s->C;
        int32_t *restrict start = list.start + h * (s->W + 1), *restrict place = list.place + h * s->W * s->C;
        float *restrict value = list.value + h * s->W * s->C;
        int32_t n = 0, i = 0;
        for (index_t w = 0; w < s->W; w++) {
            start[w] = n;
            for (index_t c = 0; c < s->C; c++, i++) {
                place[n] = i, value[n] = row[i];
                n += row[i] != 0.0f;
            }
        }
        start[s->W] = n;
    }
}

/* Add up `vectors` vectors of sums of one output pixel; `vectors` is a constant where this is called. */
STEP_FUNCTION void add_window(int vectors, const convolve_arguments *s, const float *restrict weight, list_t list, index_t top,
                              index_t left, const float *restrict bias, float *restrict y) {
    const index_t first = left < 0 ? 0 : left, last = left + s->KW > s->W ? s->W : left + s->KW;
    vector sum[VECTORS];
    for (int i = 0; i < vectors; i++) sum[i] = (vector){0};
    for (index_t kh = 0; kh < s->KH; kh++) {
        const index_t h = top + kh * s->dilation_h;
        if (h < 0 || h >= s->H || first >= last) continue;
        const float *taps = weight + (kh * s->KW - left) * s->C * LANES;
        const int32_t *restrict place = list.place + h * s->W * s->C, *start = list.start + h * (s->W + 1);
        const float *restrict value = list.value + h * s->W * s->C;
        const int32_t end = start[last];
        for (int32_t j = start[first]; j < end; j++) {
            const vector *restrict row = (const vector *)(taps + (index_t)place[j] * LANES);
            const float v = value[j];
            for (int i = 0; i < vectors; i++) sum[i] += row[i] * v;
        }
    }
    for (int i = 0; i < vectors; i++) sum[i] += ((const vector *)bias)[i];
    memcpy(y, sum, vectors * sizeof *sum);
}

static void convolve_lanes(const convolve_arguments *s, const float *weight, list_t list, const float *bias, index_t lanes,
                           float *y) {
    const int vectors = (int)((lanes + VECTOR - 1) / VECTOR);
    for (index_t oh = 0; oh < s->OH; oh++) {
        for (index_t ow = 0; ow < s->OW; ow++) {
            const index_t top = oh * s->stride_h - s->pad_h, left = ow * s->stride_w - s->pad_w;
            float buffer[LANES], *target = y + (oh * s->OW + ow) * s->K;
            float *sums = lanes % VECTOR ? buffer : target;
            switch (vectors) {
                case 1: add_window(1, s, weight, list, top, left, bias, sums); break;
                case 2: add_window(2, s, weight, list, top, left, bias, sums); break;
                case 3: add_window(3, s, weight, list, top, left, bias, sums); break;
                case 4: add_window(4, s, weight, list, top, left, bias, sums); break;
                case 5: case 6: add_window(6, s, weight, list, top, left, bias, buffer); sums = buffer; break;
                default: add_window(8, s, weight, list, top, left, bias, buffer); sums = buffer; break;
            }
            if (sums == buffer) memcpy(target, buffer, lanes * sizeof *buffer);
        }
    }
}

static int exceeds(const float *restrict x, index_t size, index_t limit) {
    index_t n = 0;
    for (index_t start = 0; start < size; start += TILE) {
        const index_t stop = start + TILE < size ? start + TILE : size;
        int32_t part = 0;
        for (index_t i = start; i < stop; i++) part += x[i] != 0.0f;
        n += part;
        if (n > limit) return 1;
    }
    return 0;
}

/* Return 0; or 1 if nothing was computed: more than `limit` entries of x are not 0, or there is no memory. */
EXPORT int convolve(const convolve_arguments *call) {
    const convolve_arguments s = *call;
    if (exceeds(s.x, s.N * s.H * s.W * s.C, s.limit)) return 1;
    const index_t size = s.H * s.W * s.C, images = size < TILE ? TILE / size : 1;
    const index_t tiles = (s.N + images - 1) / images, window = s.KH * s.KW * s.C * LANES;
    int failed = 0;
#pragma omp parallel num_threads(s.threads) if (s.threads > 1)
    {
        list_t list = {malloc(images * s.H * (s.W + 1) * sizeof *list.start),
                       malloc((images * size + 1) * sizeof *list.place),
                       malloc((images * size + 1) * sizeof *list.value)};
        if (!list.start || !list.place || !list.value) {
#pragma omp atomic write
            failed = 1;
        } else {
#pragma omp for schedule(static)
            for (index_t tile = 0; tile < tiles; tile++) {
                const index_t first = tile * images, last = first + images < s.N ? first + images : s.N;
                list_entries(s.x + first * size, (last - first) * s.H, &s, list);
                for (index_t k = 0; k < s.K; k += LANES) /* a block of weights goes through the images of the tile */
                    for (index_t n = first; n < last; n++) {
                        const list_t own = {list.start + (n - first) * s.H * (s.W + 1),
                                            list.place + (n - first) * size, list.value + (n - first) * size};
                        convolve_lanes(&s, s.weight + k / LANES * window, own, s.bias + k,
                                       s.K - k < LANES ? s.K - k : LANES, s.y + n * s.OH * s.OW * s.K + k);
                    }
            }
        }
        free(list.start), free(list.place), free(list.value);
    }
    return failed;
}
