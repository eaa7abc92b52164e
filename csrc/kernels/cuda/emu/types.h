/* Words that CUDA adds to C++: qualifiers, vector types, dim3. */
#ifndef INF_EMU_TYPES_H
#define INF_EMU_TYPES_H

#include <stddef.h>
#include <stdint.h>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
/* Blocks run one after another on the thread that launches, so a block's variable can be that
 * thread's. */
#define __shared__ static thread_local

/* Vectors have the alignment that their loads need. */
#define EMU_VECTOR1(name, type)                                                                    \
    struct name##1 {                                                                               \
        type x;                                                                                    \
    };                                                                                             \
    static inline name##1 make_##name##1(type x) { return {x}; }
#define EMU_VECTOR2(name, type)                                                                    \
    struct alignas(2 * sizeof(type)) name##2 {                                                     \
        type x, y;                                                                                 \
    };                                                                                             \
    static inline name##2 make_##name##2(type x, type y) { return {x, y}; }
#define EMU_VECTOR3(name, type)                                                                    \
    struct name##3 {                                                                               \
        type x, y, z;                                                                              \
    };                                                                                             \
    static inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }
#define EMU_VECTOR4(name, type)                                                                    \
    struct alignas(sizeof(type) < 4 ? 4 * sizeof(type) : 16) name##4 {                             \
        type x, y, z, w;                                                                           \
    };                                                                                             \
    static inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
#define EMU_VECTORS(name, type)                                                                    \
    EMU_VECTOR1(name, type)                                                                        \
    EMU_VECTOR2(name, type)                                                                        \
    EMU_VECTOR3(name, type)                                                                        \
    EMU_VECTOR4(name, type)

EMU_VECTORS(char, signed char)
EMU_VECTORS(uchar, unsigned char)
EMU_VECTORS(short, short)
EMU_VECTORS(ushort, unsigned short)
EMU_VECTORS(int, int)
EMU_VECTORS(uint, unsigned)
EMU_VECTORS(float, float)
EMU_VECTORS(longlong, long long)
EMU_VECTORS(ulonglong, unsigned long long)
EMU_VECTORS(double, double)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return uint3{x, y, z}; }
};

#endif
