/* Functions that device code calls and C++ does not have. */
#ifndef INF_EMU_INTRINSICS_H
#define INF_EMU_INTRINSICS_H

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <type_traits>

#include "kernels/cuda/emu/block.h"

/* ---- barriers ---- */

static inline void __syncthreads(emu_site site = EMU_SITE) {
    emu_barrier("__syncthreads", 0, 0, false, EMU_NONE, 0, site);
}
static inline int __syncthreads_or(int value, emu_site site = EMU_SITE) {
    return (int)emu_barrier("__syncthreads_or", 0, 0, false, EMU_OR, value != 0, site);
}
static inline int __syncthreads_and(int value, emu_site site = EMU_SITE) {
    return (int)emu_barrier("__syncthreads_and", 0, 0, false, EMU_AND, value != 0, site);
}
static inline int __syncthreads_count(int value, emu_site site = EMU_SITE) {
    return (int)emu_barrier("__syncthreads_count", 0, 0, false, EMU_COUNT, value != 0, site);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, emu_site site = EMU_SITE) {
    emu_sync_lanes(mask, site);
}
static inline void __threadfence() { emu_race_fence(); }
static inline void __threadfence_block() { emu_race_fence(); }
static inline void __threadfence_system() { emu_race_fence(); }
static inline void __nanosleep(unsigned) { emu_yield(); }
[[noreturn]] static inline void __trap(emu_site site = EMU_SITE) { emu_fault(site, "__trap"); }

/* ---- shuffles ---- */

struct emu_shuffle {
    uint64_t value, got;
    uint32_t from; /* lane */
};
/* A lane that does not take part gives garbage. */
EMU_QUIET static inline void emu_shuffle_lanes(void *const lanes[32], uint32_t here) {
    for (int i = 0; i < 32; i++) {
        emu_shuffle *s = (emu_shuffle *)lanes[i];
        if (s != NULL) {
            bool there = (here >> s->from & 1) != 0;
            s->got = there ? ((const emu_shuffle *)lanes[s->from])->value : 0xcbcbcbcbcbcbcbcbu;
        }
    }
}
/* `from`: a lane of the whole warp. */
template <typename T>
static inline T emu_shuffle_from(const char *what, unsigned mask, T value, uint32_t from, int width,
                                 emu_site site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 32 or 64 bits");
    if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
        emu_fault(site, "%s: a width of %d", what, width);
    }
    emu_shuffle s = {0, 0, from};
    memcpy(&s.value, &value, sizeof value);
    emu_meet(what, mask, emu_shuffle_lanes, &s, site);
    memcpy(&value, &s.got, sizeof value);
    return value;
}
template <typename T>
static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
                            emu_site site = EMU_SITE) {
    uint32_t me = emu_self->lane, w = (uint32_t)width;
    return emu_shuffle_from("__shfl_sync", mask, value, me / w * w + (uint32_t)lane % w, width,
                            site);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                                emu_site site = EMU_SITE) {
    uint32_t me = emu_self->lane, w = (uint32_t)width, from = (me ^ (uint32_t)lanes) % 32;
    bool inside = from / w <= me / w; /* earlier groups may be read */
    return emu_shuffle_from("__shfl_xor_sync", mask, value, inside ? from : me, width, site);
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                               emu_site site = EMU_SITE) {
    uint32_t me = emu_self->lane, w = (uint32_t)width;
    return emu_shuffle_from("__shfl_up_sync", mask, value, me % w >= delta ? me - delta : me, width,
                            site);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                                 emu_site site = EMU_SITE) {
    uint32_t me = emu_self->lane, w = (uint32_t)width;
    return emu_shuffle_from("__shfl_down_sync", mask, value, me % w + delta < w ? me + delta : me,
                            width, site);
}

/* ---- votes and reductions ---- */

struct emu_vote {
    bool yes;
    uint32_t yeses, here;
};
EMU_QUIET static inline void emu_vote_lanes(void *const lanes[32], uint32_t here) {
    uint32_t yeses = 0;
    for (int i = 0; i < 32; i++) {
        yeses |= lanes[i] != NULL && ((const emu_vote *)lanes[i])->yes ? 1u << i : 0;
    }
    for (int i = 0; i < 32; i++) {
        if (lanes[i] != NULL) {
            ((emu_vote *)lanes[i])->yeses = yeses;
            ((emu_vote *)lanes[i])->here = here;
        }
    }
}
static inline emu_vote emu_vote_of(const char *what, unsigned mask, int yes, emu_site site) {
    emu_vote v = {yes != 0, 0, 0};
    emu_meet(what, mask, emu_vote_lanes, &v, site);
    return v;
}
static inline unsigned __ballot_sync(unsigned mask, int yes, emu_site site = EMU_SITE) {
    return emu_vote_of("__ballot_sync", mask, yes, site).yeses;
}
static inline int __any_sync(unsigned mask, int yes, emu_site site = EMU_SITE) {
    return emu_vote_of("__any_sync", mask, yes, site).yeses != 0;
}
static inline int __all_sync(unsigned mask, int yes, emu_site site = EMU_SITE) {
    emu_vote v = emu_vote_of("__all_sync", mask, yes, site);
    return v.yeses == v.here;
}
/* Lanes diverge only where they wait. */
static inline unsigned __activemask() { return emu_alive_lanes(); }

template <typename T> struct emu_reduce { T value, got; };
template <typename T, T (*F)(T, T)>
EMU_QUIET static inline void emu_reduce_lanes(void *const lanes[32], uint32_t here) {
    int first = __builtin_ctz(here);
    T sum = ((const emu_reduce<T> *)lanes[first])->value;
    for (int i = first + 1; i < 32; i++) {
        sum = lanes[i] != NULL ? F(sum, ((const emu_reduce<T> *)lanes[i])->value) : sum;
    }
    for (int i = first; i < 32; i++) {
        if (lanes[i] != NULL) {
            ((emu_reduce<T> *)lanes[i])->got = sum;
        }
    }
}
template <typename T> static inline T emu_add_of(T a, T b) { return (T)(a + b); }
template <typename T> static inline T emu_min_of(T a, T b) { return b < a ? b : a; }
template <typename T> static inline T emu_max_of(T a, T b) { return b > a ? b : a; }
template <typename T> static inline T emu_and_of(T a, T b) { return (T)(a & b); }
template <typename T> static inline T emu_or_of(T a, T b) { return (T)(a | b); }
template <typename T> static inline T emu_xor_of(T a, T b) { return (T)(a ^ b); }
#define EMU_REDUCE(name, type, f)                                                                  \
    static inline type name(unsigned mask, type value, emu_site site = EMU_SITE) {                 \
        emu_reduce<type> r = {value, value};                                                       \
        emu_meet(#name, mask, emu_reduce_lanes<type, f<type>>, &r, site);                          \
        return r.got;                                                                              \
    }
EMU_REDUCE(__reduce_add_sync, unsigned, emu_add_of)
EMU_REDUCE(__reduce_add_sync, int, emu_add_of)
EMU_REDUCE(__reduce_min_sync, unsigned, emu_min_of)
EMU_REDUCE(__reduce_min_sync, int, emu_min_of)
EMU_REDUCE(__reduce_max_sync, unsigned, emu_max_of)
EMU_REDUCE(__reduce_max_sync, int, emu_max_of)
EMU_REDUCE(__reduce_and_sync, unsigned, emu_and_of)
EMU_REDUCE(__reduce_or_sync, unsigned, emu_or_of)
EMU_REDUCE(__reduce_xor_sync, unsigned, emu_xor_of)

/* ---- atomic operations: kernels of other streams may run on other OS threads ---- */

template <typename T> struct emu_same { typedef T type; };
/* F(old, value) takes old's place. */
template <typename T, typename F> static inline T emu_update(T *p, T value, F f) {
    emu_pause();
    T old, next;
    __atomic_load(p, &old, __ATOMIC_SEQ_CST);
    do {
        next = f(old, value);
    } while (!__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return old;
}
#define EMU_ATOMIC(name, expression)                                                               \
    template <typename T> static inline T name(T *p, typename emu_same<T>::type value) {           \
        return emu_update(p, value, [](T a, T b) { return (T)(expression); });                     \
    }                                                                                              \
    template <typename T> static inline T name##_block(T *p, typename emu_same<T>::type value) {   \
        return name(p, value);                                                                     \
    }
EMU_ATOMIC(atomicAdd, a + b)
EMU_ATOMIC(atomicSub, a - b)
EMU_ATOMIC(atomicMax, b > a ? b : a)
EMU_ATOMIC(atomicMin, b < a ? b : a)
EMU_ATOMIC(atomicAnd, a &b)
EMU_ATOMIC(atomicOr, a | b)
EMU_ATOMIC(atomicXor, a ^ b)
EMU_ATOMIC(atomicExch, ((void)a, b))
EMU_ATOMIC(atomicInc, a >= b ? 0 : a + 1)
EMU_ATOMIC(atomicDec, a == 0 || a > b ? b : a - 1)
template <typename T>
static inline T atomicCAS(T *p, typename emu_same<T>::type expected,
                          typename emu_same<T>::type value) {
    return emu_update(p, (T)value, [expected](T a, T b) { return a == expected ? b : a; });
}

/* ---- memory ---- */

template <typename T> static inline T __ldg(const T *p) { return *p; }
template <typename T> static inline T __ldca(const T *p) { return *p; }
template <typename T> static inline T __ldcs(const T *p) { return *p; }
template <typename T> static inline T __ldcg(const T *p) { return *p; }
template <typename T> static inline T __ldcv(const T *p) { return *(const volatile T *)p; }
static inline float4 __ldcv(const float4 *p) { return *p; }
template <typename T> static inline void __stcs(T *p, typename emu_same<T>::type v) { *p = v; }
template <typename T> static inline void __stcg(T *p, typename emu_same<T>::type v) { *p = v; }
template <typename T> static inline void __stwt(T *p, typename emu_same<T>::type v) { *p = v; }
static inline size_t __cvta_generic_to_shared(const void *p) { return (size_t)p; }

/* ---- bits ---- */

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x != 0 ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) {
    return x != 0 ? __builtin_clzll((unsigned long long)x) : 64;
}
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) {
        y |= (x >> i & 1u) << (31 - i);
    }
    return y;
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
    unsigned long long bytes = (unsigned long long)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned select = s >> (4 * i), byte = (unsigned)(bytes >> (8 * (select & 7))) & 255u;
        byte = (select & 8) == 0 ? byte : (byte & 128u) != 0 ? 255u : 0u;
        r |= byte << (8 * i);
    }
    return r;
}
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
    return (unsigned)((((unsigned long long)hi << 32 | lo) << (shift & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
    return (unsigned)(((unsigned long long)hi << 32 | lo) >> (shift & 31));
}

/* A value's bits as another type's. */
template <typename To, typename From> static inline To emu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return emu_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
static inline float __int_as_float(int x) { return emu_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emu_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emu_bits<double>(x); }

/* ---- arithmetic ---- */

static inline float rsqrtf(float x) { return (float)(1.0 / sqrt((double)x)); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __frsqrt_rn(float x) { return rsqrtf(x); }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline float __saturatef(float x) { return x > 0.0f ? fminf(x, 1.0f) : 0.0f; }
static inline int __float2int_rn(float x) { return (int)lrintf(x); }
static inline int __float2int_rz(float x) { return (int)x; }
static inline int __float2int_rd(float x) { return (int)floorf(x); }
static inline unsigned __float2uint_rn(float x) { return (unsigned)llrintf(x); }
static inline unsigned __float2uint_rz(float x) { return (unsigned)x; }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline float __double2float_rn(double x) { return (float)x; }
/* The C library declares some of these names for itself. */
#define __expf(x)          expf(x)
#define __exp2f(x)         exp2f(x)
#define __exp10f(x)        exp10f(x)
#define __logf(x)          logf(x)
#define __log2f(x)         log2f(x)
#define __log10f(x)        log10f(x)
#define __sinf(x)          sinf(x)
#define __cosf(x)          cosf(x)
#define __tanf(x)          tanf(x)
#define __powf(x, y)       powf((x), (y))
#define __sincosf(x, s, c) sincosf((x), (s), (c))

/* min and max of two types that differ: the usual conversions, as in CUDA. */
template <typename A, typename B>
static inline typename std::enable_if<std::is_arithmetic<A>::value && std::is_arithmetic<B>::value,
                                      typename std::common_type<A, B>::type>::type
min(A a, B b) {
    typedef typename std::common_type<A, B>::type T;
    if constexpr (std::is_floating_point<T>::value) {
        return fmin((T)a, (T)b);
    } else {
        return (T)b < (T)a ? (T)b : (T)a;
    }
}
template <typename A, typename B>
static inline typename std::enable_if<std::is_arithmetic<A>::value && std::is_arithmetic<B>::value,
                                      typename std::common_type<A, B>::type>::type
max(A a, B b) {
    typedef typename std::common_type<A, B>::type T;
    if constexpr (std::is_floating_point<T>::value) {
        return fmax((T)a, (T)b);
    } else {
        return (T)b > (T)a ? (T)b : (T)a;
    }
}

/* ---- time ---- */

static inline long long clock64() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long long)t.tv_sec * 1000000000 + t.tv_nsec;
}
static inline unsigned long long __globaltimer() { return (unsigned long long)clock64(); }

#endif
