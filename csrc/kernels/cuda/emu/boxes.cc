/* Copies by tensor map, after the PTX ISA; boxes.cuh tells the layout. */
#include "kernels/cuda/boxes.cuh"

#include "kernels/cuda/emu/inside.h"
#include "kernels/cuda/emu/race.h"

uint32_t emu_window_address(const void *p, emu_site site) {
    ptrdiff_t at = (const uint8_t *)p - emu_self->block->shared;
    if (at < 0 || (size_t)at >= emu_self->block->grid->shared) {
        emu_fault(site, "%p is not in the block's dynamic shared memory", p);
    }
    return (uint32_t)at;
}

uint8_t *emu_swizzled(uint32_t address, emu_site site) {
    address ^= (address >> 7 & 7) << 4;
    if (address >= emu_self->block->grid->shared) {
        emu_fault(site, "address %#x is beyond the block's shared memory", address);
    }
    return emu_self->block->shared + address;
}

/* ---- tensor maps ---- */

struct box {
    uint32_t to;
    const tensor_map *map;
    int32_t at; /* in the last dimension */
    emu_site site;
};

static void land(const box &x) {
    const tensor_map &m = *x.map;
    uint32_t to = x.to, i[4];
    for (i[3] = 0; i[3] < m.box[3]; i[3]++) {
        for (i[2] = 0; i[2] < m.box[2]; i[2]++) {
            for (i[1] = 0; i[1] < m.box[1]; i[1]++) {
                for (i[0] = 0; i[0] < m.box[0]; i[0]++, to += 2) {
                    const uint8_t *from = m.base;
                    bool there = true;
                    for (int k = 0; k < 4; k++) {
                        int64_t at = (k == 3 ? (int64_t)x.at : 0) + i[k];
                        there = there && at >= 0 && at < (int64_t)m.size[k];
                        from += there ? (uint64_t)at * m.pitch[k] : 0;
                    }
                    for (uint32_t b = 0; b < 2; b++) {
                        *emu_swizzled(to + b, x.site) = there ? from[b] : 0;
                    }
                }
            }
        }
    }
}

/* Boxes are whole atoms. */
void emu_copy_box(void *shared, const tensor_map *map, int32_t at, uint64_t *bar, emu_site site) {
    box x = {emu_window_address(shared, site), map, at, site};
    if (x.to % 1024 != 0 || (uintptr_t)map % 64 != 0 || map->box[0] != 64) {
        emu_fault(site, "copy_box to %#x by the map at %p: not aligned, or not 128 bytes wide",
                  x.to, (const void *)map);
    }
    emu_copy_later(
        shared, map->box[1] * map->box[2] * map->box[3] * 128, bar, [x] { land(x); }, site);
}
