/* What a CUDA source needs to be compiled as C++ and run on the CPU, one block after the other.

   The threads of a block are fibers, so that barriers and shuffles wait as they do on a GPU. A warp goes as far as it
   can before the next one moves, the first warp and block first or the last. What this cannot show: races between
   blocks, or in any other order; the accuracy of approximate instructions; what a GPU's own conversions do. */

#pragma once
/* No C++ header: they cost more time than the kernels. */
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static /* one block runs at a time */

struct Index { unsigned x, y, z; };
static Index blockIdx, threadIdx, blockDim, gridDim;
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float approximate_exp2(float x) { return __builtin_exp2f(x); }
static inline float from_float16(unsigned short h) { _Float16 f; memcpy(&f, &h, 2); return (float)f; }
static inline unsigned short to_float16(float f) { _Float16 h = (_Float16)f; unsigned short u; memcpy(&u, &h, 2); return u; }
template <typename word> static inline void store_word(word *to, word w) { *to = w; }

/* -- fibers ------------------------------------------------------------------------------------------------------- */

namespace fibers {
enum { MOST = 1024, STACK = 1 << 16, WARP = 32 };
static jmp_buf fiber[MOST], scheduler;
static ucontext_t start[MOST], scheduler_start;
static char *stacks;
static bool started[MOST], done[MOST];
static unsigned current, threads, moves, descending, skipped;
static unsigned block_arrived, block_turn, warp_arrived[MOST / WARP], warp_turn[MOST / WARP];
static double slots[MOST];
static void (*body)(const int64_t *);
static const int64_t *arguments;

static void pause() {
    if (!_setjmp(fiber[current])) _longjmp(scheduler, 1);
}

static void enter() {
    body(arguments);
    done[current] = true;
    moves++;
    _longjmp(scheduler, 1);
}

static void wait(unsigned &arrived, unsigned &turn, unsigned count) {
    const unsigned mine = turn;
    moves++;
    if (++arrived == count) arrived = 0, turn++;
    else while (turn == mine) pause();
}

static void block_barrier() { wait(block_arrived, block_turn, threads); }

static void warp_barrier() {
    const unsigned warp = current / WARP, rest = threads - warp * WARP;
    wait(warp_arrived[warp], warp_turn[warp], rest < WARP ? rest : WARP);
}

static double exchange(double value, unsigned distance) {
    slots[current] = value;
    warp_barrier();
    const double other = slots[current ^ distance];
    warp_barrier();
    return other;
}

static void resume(unsigned t) {
    current = t;
    threadIdx = {t, 0, 0};
    if (_setjmp(scheduler)) return;
    if (started[t]) _longjmp(fiber[t], 1);
    started[t] = true;
    setcontext(&start[t]);
}

/* Take a warp as far as it can go alone; returns how many of its threads have not come to their end. */
static unsigned run_warp(unsigned warp) {
    const unsigned first = warp * WARP, count = threads - first < WARP ? threads - first : WARP;
    for (;;) {
        const unsigned before = moves;
        unsigned left = 0;
        for (unsigned k = 0; k < count; k++) {
            const unsigned t = first + (descending ? count - 1 - k : k);
            if (!done[t]) resume(t), left += !done[t];
        }
        if (!left || moves == before) return left;
    }
}

/* Returns whether every thread came to its end; threads that wait for each other for ever do not. */
static bool run_block() {
    block_arrived = 0;
    memset(warp_arrived, 0, sizeof warp_arrived);
    for (unsigned t = 0; t < threads; t++) {
        started[t] = done[t] = false;
        getcontext(&start[t]);
        start[t].uc_stack.ss_sp = stacks + (size_t)t * STACK;
        start[t].uc_stack.ss_size = STACK;
        makecontext(&start[t], enter, 0);
    }
    const unsigned warps = (threads + WARP - 1) / WARP;
    for (;;) {
        const unsigned before = moves;
        unsigned left = 0;
        for (unsigned k = 0; k < warps; k++) left += run_warp(descending ? warps - 1 - k : k);
        if (!left) return true;
        if (moves == before) return false;
    }
}
}

extern "C" void set_order(unsigned descending, unsigned skipped) {
    fibers::descending = descending;
    fibers::skipped = skipped; /* as many blocks, the first */
}

#define __syncthreads fibers::block_barrier
template <typename T> static inline T __shfl_xor_sync(unsigned, T value, int distance) {
    return (T)fibers::exchange(value, distance);
}
static inline void __threadfence() {}
static inline unsigned atomicAdd(unsigned *address, unsigned more) {
    const unsigned old = *address;
    *address = old + more;
    return old;
}

/* -- launching ---------------------------------------------------------------------------------------------------- */

template <typename T> static T argument(int64_t word) { T value; memcpy(&value, &word, sizeof value); return value; }

template <size_t...> struct Indices {};
template <size_t N, size_t... I> struct UpTo : UpTo<N - 1, N - 1, I...> {};
template <size_t... I> struct UpTo<0, I...> { typedef Indices<I...> type; };

template <typename... A, size_t... I>
static void call(void (*kernel)(A...), const int64_t *words, Indices<I...>) {
    kernel(argument<A>(words[I])...);
}

template <typename... A> static void call(void (*kernel)(A...), const int64_t *words) {
    call(kernel, words, typename UpTo<sizeof...(A)>::type());
}

static int launch(void (*body)(const int64_t *), unsigned grid, unsigned block, const int64_t *words) {
    if (!fibers::stacks) fibers::stacks = (char *)__builtin_malloc((size_t)fibers::MOST * fibers::STACK);
    fibers::body = body;
    fibers::arguments = words;
    fibers::threads = block;
    gridDim = {grid, 1, 1};
    blockDim = {block, 1, 1};
    for (unsigned b = fibers::skipped; b < grid; b++) {
        blockIdx = {fibers::descending ? grid - 1 - b : b, 0, 0};
        if (!fibers::run_block()) return 1;
    }
    return 0;
}
