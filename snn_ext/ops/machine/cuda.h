/* What the CUDA sources share: numbers, vectors of neighbouring neurons. Python replaces every #include
   by the text, for NVRTC finds no header unless somebody installs it.

   A kernel runs over [T][N] arrays. A thread takes VECTOR neighbouring neurons through all time steps, with their state in
   registers. The input of up to SEGMENT steps is loaded before the first of them, so that these loads are in flight
   together. Compile without contraction into FMA, without flushing subnormal numbers, and with the fast division (only
   surrogates and asn_transfer divide). Fixed at compile time, for every kernel:

   BACKWARD            0: forward, 1: backward
   DTYPE               of input and output: FLOAT32, FLOAT16 or BFLOAT16
   STEPS               number of time steps up to SEGMENT; 0: any number, with checkpoints of the state
   VECTOR              neurons of a thread: divides N, and every array is aligned to VECTOR elements or 16 bytes

   What an operator adds follows from its declaration: NAME_STRIDE is 0 where an input holds one element for all steps or
   neurons, NAME_EACH is 1 where what may differ between steps or neurons differs between neurons, HAS_NAME says whether an optional input is given, and every setting that is no number is a macro. A kernel's
   parameters, with the names of the declaration, are FORWARD_PARAMETERS or BACKWARD_PARAMETERS. */

#define STEP_FUNCTION static __device__ __forceinline__

#include "declaration.h"

enum { THREADS = 128, LANES = 32, WARPS = THREADS / LANES, ROWS = STEPS ? STEPS : SEGMENT };

/* -- numbers ------------------------------------------------------------------------------------------------------ */

#ifdef __CUDACC__
STEP_FUNCTION float approximate_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
STEP_FUNCTION float from_float16(unsigned short half) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(half));
    return f;
}
STEP_FUNCTION unsigned short to_float16(float f) {
    unsigned short half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(f));
    return half;
}

/* The compiler splits plain stores of two or four words where it cannot prove their alignment. */
STEP_FUNCTION void store_word(unsigned short *to, unsigned short w) { *to = w; }
STEP_FUNCTION void store_word(unsigned *to, unsigned w) { *to = w; }
STEP_FUNCTION void store_word(uint2 *to, uint2 w) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" : : "l"(to), "r"(w.x), "r"(w.y) : "memory");
}
STEP_FUNCTION void store_word(uint4 *to, uint4 w) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" : : "l"(to), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w) : "memory");
}
#endif

STEP_FUNCTION float exp_of_negative(float x) { return approximate_exp2(1.44269504f * x); }

/* Correctly rounded, unlike the operator. */
STEP_FUNCTION float divide(float a, float b) { return __fdiv_rn(a, b); }
STEP_FUNCTION float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }

#include "surrogates.h"

STEP_FUNCTION float from_bfloat16(unsigned short b) { return __uint_as_float((unsigned)b << 16); }

STEP_FUNCTION unsigned short to_bfloat16(float f) { /* to nearest, ties to even */
    const unsigned u = __float_as_uint(f);
    return f != f ? 0x7fc0 : (unsigned short)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

#if DTYPE == FLOAT32
typedef float io_t;
STEP_FUNCTION float from_io(io_t x) { return x; }
STEP_FUNCTION io_t to_io(float f) { return f; }
#else
typedef unsigned short io_t;
STEP_FUNCTION float from_io(io_t x) { return DTYPE == FLOAT16 ? from_float16(x) : from_bfloat16(x); }
STEP_FUNCTION io_t to_io(float f) { return DTYPE == FLOAT16 ? to_float16(f) : to_bfloat16(f); }
#endif

/* -- a thread's neurons: one access of up to 16 bytes, or two for eight floats ------------------------------------- */

template <int BYTES> struct Word { typedef uint4 type; };
template <> struct Word<8> { typedef uint2 type; };
template <> struct Word<4> { typedef unsigned type; };
template <> struct Word<2> { typedef unsigned short type; };

template <typename T> union Vector {
    enum { WORDS = VECTOR * sizeof(T) > 16 ? VECTOR * sizeof(T) / 16 : 1 };
    typedef typename Word<VECTOR * sizeof(T) / WORDS>::type word;
    T at[VECTOR];
    word words[WORDS];
};

template <typename T> STEP_FUNCTION Vector<T> load(const T *from) {
    typedef typename Vector<T>::word word;
    Vector<T> v;
#pragma unroll
    for (int i = 0; i < v.WORDS; i++) v.words[i] = reinterpret_cast<const word *>(from)[i];
    return v;
}

template <typename T> STEP_FUNCTION void store(T *to, const Vector<T> &v) {
    typedef typename Vector<T>::word word;
#pragma unroll
    for (int i = 0; i < v.WORDS; i++) store_word(reinterpret_cast<word *>(to) + i, v.words[i]);
}

STEP_FUNCTION Vector<float> all(float value) {
    Vector<float> v;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) v.at[i] = value;
    return v;
}

STEP_FUNCTION Vector<float> start(const float *v, index_t v_stride, index_t n) {
    return v_stride ? load(v + n) : all(v[0]);
}
