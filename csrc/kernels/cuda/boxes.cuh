/* Copies by tensor map from global to shared memory (TMA): machine instructions of sm_90 on. Their
 * barriers are bulk.cuh's. Emulated in emu/boxes.h.
 *
 * The layout with 128-byte swizzle. A tile is made of atoms, 8 rows of 128 bytes (64 numbers of 16
 * bits), 1024 bytes together and aligned to that; 16-byte word c of row r of an atom stands at
 * place c ^ r: bits 4 .. 6 of an address are combined with bits 7 .. 9. So the eight words c of an
 * atom, one of each row, lie in different banks, and every row on a line of its own. */
#ifndef INF_CUDA_BOXES_CUH
#define INF_CUDA_BOXES_CUH

#include "kernels/cuda/bulk.cuh"

#if defined(INF_EMU)
#include "kernels/cuda/emu/boxes.h"
#elif __CUDACC_VER_MAJOR__ >= 12
#include <cuda.h>
typedef CUtensorMap tensor_map;
#else
struct tensor_map {
    uint64_t nothing[16];
};
#endif

#if !defined(INF_EMU) && INF_HAS_BULK

/* The map's box at (0, 0, 0, at), by one thread. The map has four dimensions and is a kernel
 * parameter. */
static __device__ __forceinline__ void copy_box(void *shared, const tensor_map *map, int32_t at,
                                                uint64_t *bar) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, "
                 "%3, %3, %4}], [%2];" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(bar)), "r"(0), "r"(at)
                 : "memory");
}
static __device__ __forceinline__ void prefetch_map(const tensor_map *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

#endif
#endif
