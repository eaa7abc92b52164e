/* The wrappers of boxes.cuh, after the PTX ISA: tensor maps of four dimensions, 16-bit numbers,
 * 128-byte swizzle; boxes are 64 numbers wide. A copy happens as late as it may: when somebody
 * waits for its barrier (bulk.h). */
#ifndef INF_EMU_BOXES_H
#define INF_EMU_BOXES_H

#include "kernels/cuda/emu/bulk.h"
#include "kernels/cuda/emu/emu.h"

/* An address in the shared memory's window. */
uint32_t emu_window_address(const void *p, emu_site site);

/* A byte of a tile with 128-byte swizzle. */
uint8_t *emu_swizzled(uint32_t address, emu_site site);

struct alignas(64) tensor_map {
    const uint8_t *base;
    uint64_t size[4], pitch[4]; /* numbers; bytes from one to the next */
    uint32_t box[4];
};

void emu_copy_box(void *shared, const tensor_map *map, int32_t at, uint64_t *bar, emu_site site);
static inline void copy_box(void *shared, const tensor_map *map, int32_t at, uint64_t *bar,
                            emu_site site = EMU_SITE) {
    emu_copy_box(shared, map, at, bar, site);
}
static inline void prefetch_map(const tensor_map *) {}

#endif
