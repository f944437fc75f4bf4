/* asn_transfer over [N] arrays on the CPU; plain C, called through ctypes. */

#include "cpu.h"
#include "step.h"

enum { BLOCK = 4096 };
DEFINE_ROWS(3)

#define CONSTANTS call->r, call->a, call->b, call->half_height, call->offset, call->cut

static void forward_block(const forward_arguments *call, index_t b, int m) {
    row_t *const rows = rows_of_thread();
    float *buffer = rows[0], *out = rows[1], *target = call->dtype == FLOAT32 ? (float *)call->f + b : out;
    const float *row = load_row(call->s, call->dtype, b, m, buffer);
    for (int i = 0; i < m; i++) target[i] = transfer(row[i], CONSTANTS);
    if (call->dtype != FLOAT32) store_row(call->f, call->dtype, b, m, out);
}

EXPORT int forward(const forward_arguments *call) {
    make_present(call->f, bytes_of(call->N, call->dtype), call->threads);
    FOR_EACH_BLOCK(forward_block)
    return 0;
}

static void backward_block(const backward_arguments *call, index_t b, int m) {
    row_t *const rows = rows_of_thread();
    float *buffer = rows[0], *g_buffer = rows[1], *out = rows[2];
    float *target = call->dtype == FLOAT32 ? (float *)call->grad_s + b : out;
    const float *row = load_row(call->s, call->dtype, b, m, buffer);
    const float *g = load_row(call->grad_f, call->dtype, b, m, g_buffer);
    for (int i = 0; i < m; i++) target[i] = g[i] * transfer_slope(row[i], CONSTANTS);
    if (call->dtype != FLOAT32) store_row(call->grad_s, call->dtype, b, m, out);
}

EXPORT int backward(const backward_arguments *call) {
    make_present(call->grad_s, bytes_of(call->N, call->dtype), call->threads);
    FOR_EACH_BLOCK(backward_block)
    return 0;
}
