/* The wrappers of hopper.cuh, after the PTX ISA: barriers in shared memory, tensor maps, wgmma on
 * descriptors.
 *
 * Things happen as late as they may: a copy when somebody waits for its barrier, and until then its
 * destination is garbage; a product when its group is waited for, from what registers and shared
 * memory hold by then. */
#ifndef INF_EMU_HOPPER_H
#define INF_EMU_HOPPER_H

#include <string.h>

#include <vector>

#include "kernels/cuda/emu/emu.h"

/* ---- addresses: those of the shared memory's window ---- */

static inline uint32_t window_address(const void *p, emu_site site = EMU_SITE) {
    ptrdiff_t at = (const uint8_t *)p - emu_self->block->shared;
    if (at < 0 || (size_t)at >= emu_self->block->grid->shared) {
        emu_fault(site, "%p is not in the block's dynamic shared memory", p);
    }
    return (uint32_t)at;
}

/* A byte of a tile with 128-byte swizzle. */
static inline uint8_t *emu_swizzled(uint32_t address, emu_site site) {
    address ^= (address >> 7 & 7) << 4;
    if (address >= emu_self->block->grid->shared) {
        emu_fault(site, "address %#x is beyond the block's shared memory", address);
    }
    return emu_self->block->shared + address;
}

/* ---- tensor maps of two dimensions, 16-bit numbers, boxes of 64 columns, 128-byte swizzle ---- */

struct alignas(64) tensor_map {
    const uint8_t *base;
    uint64_t columns, rows;
    uint32_t box_rows;
};

/* ---- barriers ---- */

struct emu_mbarrier {
    uint16_t count, pending;
    int32_t bytes; /* announced and not landed; the lowest bit is the phase's parity */
};
static_assert(sizeof(emu_mbarrier) == sizeof(uint64_t), "");

struct emu_box {
    uint32_t to;
    const tensor_map *map;
    int32_t column, row;
    emu_mbarrier *bar;
    emu_site site;
};
static thread_local std::vector<emu_box> emu_boxes; /* under way */

static inline void emu_mbarrier_check(emu_mbarrier *b) {
    if (b->pending == 0 && b->bytes >> 1 == 0) {
        b->pending = b->count;
        b->bytes ^= 1;
    }
}
static inline void barrier_init(uint64_t *bar, int count) {
    emu_mbarrier b = {(uint16_t)count, (uint16_t)count, 0};
    memcpy(bar, &b, sizeof b);
}
static inline void barrier_init_fence() {}
static inline void barrier_expect(uint64_t *bar, uint32_t bytes, emu_site site = EMU_SITE) {
    emu_mbarrier *b = (emu_mbarrier *)bar;
    if (b->pending == 0) {
        emu_fault(site, "an arrival beyond the barrier's count");
    }
    b->bytes += (int32_t)bytes * 2;
    b->pending--;
    emu_mbarrier_check(b);
}
static inline void barrier_arrive(uint64_t *bar, emu_site site = EMU_SITE) {
    barrier_expect(bar, 0, site);
}

static inline void emu_land(const emu_box &x) {
    for (uint32_t r = 0; r < x.map->box_rows; r++) {
        int64_t row = (int64_t)x.row + r;
        for (uint32_t i = 0; i < 128; i++) {
            int64_t column = x.column + (int64_t)(i / 2);
            bool there = row >= 0 && row < (int64_t)x.map->rows && column >= 0 &&
                         column < (int64_t)x.map->columns;
            *emu_swizzled(x.to + r * 128 + i, x.site) =
                there ? x.map->base[((uint64_t)row * x.map->columns + (uint64_t)column) * 2 + i % 2]
                      : 0;
        }
    }
    x.bar->bytes -= (int32_t)(x.map->box_rows * 128 * 2);
    emu_mbarrier_check(x.bar);
}

static inline void barrier_wait(uint64_t *bar, uint32_t parity, emu_site site = EMU_SITE) {
    emu_mbarrier *b = (emu_mbarrier *)bar;
    for (int tries = 0; (uint32_t)(b->bytes & 1) == parity; tries++) {
        std::vector<emu_box> landing, rest;
        for (const emu_box &x : emu_boxes) {
            (x.bar == b ? landing : rest).push_back(x);
        }
        emu_boxes = rest;
        for (const emu_box &x : landing) {
            emu_land(x);
        }
        if (tries == 1 << 20) {
            emu_fault(site, "a wait without end: %d arrivals and %d bytes are missing", b->pending,
                      b->bytes >> 1);
        }
        if (landing.empty()) {
            emu_yield();
        }
    }
}
static inline void async_fence() {}

static inline void copy_box(void *shared, const tensor_map *map, int32_t column, int32_t row,
                            uint64_t *bar, emu_site site = EMU_SITE) {
    uint32_t to = window_address(shared);
    if (to % 128 != 0 || (uintptr_t)map % 64 != 0) {
        emu_fault(site, "copy_box to %#x by the map at %p: not aligned", to, (const void *)map);
    }
    memset(shared, 0xff, map->box_rows * 128); /* boxes are whole atoms or whole rows of one */
    emu_boxes.push_back({to, map, column, row, (emu_mbarrier *)bar, site});
}
static inline void prefetch_map(const tensor_map *) {}

/* ---- products ---- */

template <int n> static inline void take_registers() {}
template <int n> static inline void give_registers() {}

struct emu_product {
    float (*d)[4];
    int groups;        /* N / 8 */
    const uint32_t *a; /* in registers; NULL: descriptor */
    uint64_t a_at, b_at;
    bool b_mn_major, keep, is_bf16;
    emu_site site;
};
struct emu_products {
    std::vector<emu_product> asked;
    std::vector<size_t> ends; /* of committed groups */
};
static thread_local emu_products emu_products_of[1024];

static inline float emu_operand(uint64_t at, bool mn_major, int mn, int k, bool is_bf16,
                                emu_site site) {
    uint32_t start = (uint32_t)(at & 0x3fff) << 4, leading = (uint32_t)(at >> 16 & 0x3fff) << 4;
    uint32_t stride = (uint32_t)(at >> 32 & 0x3fff) << 4;
    if (at >> 62 != 1 || (at >> 49 & 7) != 0) {
        emu_fault(site, "descriptor %#llx: not 128-byte swizzle with aligned atoms",
                  (unsigned long long)at);
    }
    uint32_t offset = mn_major ? (uint32_t)(mn % 64 * 2 + k % 8 * 128) +
                                     (uint32_t)(mn / 64) * leading + (uint32_t)(k / 8) * stride
                               : (uint32_t)(k * 2 + mn % 8 * 128) + (uint32_t)(mn / 8) * stride;
    uint16_t h;
    memcpy(&h, emu_swizzled(start + offset, site), 2);
    return is_bf16 ? bits_to_float((uint32_t)h << 16) : f16_to_float(h);
}

/* For the 16 rows of a warp. */
static inline void emu_multiply(void *const lanes[32], uint32_t) {
    const emu_product &p = *(const emu_product *)lanes[0];
    int warp = (int)(emu_self->number / 32 % 4);
    static thread_local float a[16][16], b[16][256];
    for (int k = 0; k < 16; k++) {
        for (int r = 0; r < 16; r++) {
            if (p.a == NULL) {
                a[r][k] = emu_operand(p.a_at, false, 16 * warp + r, k, p.is_bf16, p.site);
                continue;
            }
            const emu_product &owner = *(const emu_product *)lanes[r % 8 * 4 + k % 8 / 2];
            uint32_t pair = owner.a[r / 8 + 2 * (k / 8)];
            uint16_t h = (uint16_t)(pair >> (16 * (k % 2)));
            a[r][k] = p.is_bf16 ? bits_to_float((uint32_t)h << 16) : f16_to_float(h);
        }
        for (int n = 0; n < 8 * p.groups; n++) {
            b[k][n] = emu_operand(p.b_at, p.b_mn_major, n, k, p.is_bf16, p.site);
        }
    }
    for (int t = 0; t < 32; t++) {
        const emu_product &to = *(const emu_product *)lanes[t];
        if (to.a_at != p.a_at || to.b_at != p.b_at || to.keep != p.keep) {
            emu_fault(p.site, "lanes of a wgmma do not agree");
        }
        for (int i = 0; i < 4 * p.groups; i++) {
            int row = t / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + 2 * (t % 4) + i % 2;
            float sum = p.keep ? to.d[i / 4][i % 4] : 0.0f;
            for (int k = 0; k < 16; k++) {
                sum += a[row][k] * b[k][column];
            }
            to.d[i / 4][i % 4] = sum;
        }
    }
}

static inline void wgmma_fence() {}
static inline void wgmma_commit() {
    emu_products &x = emu_products_of[emu_self->number];
    x.ends.push_back(x.asked.size());
}
template <int n> static inline void wgmma_wait(emu_site site = EMU_SITE) {
    emu_products &x = emu_products_of[emu_self->number];
    while (x.ends.size() > (size_t)n) {
        size_t end = x.ends[0];
        for (size_t i = 0; i < end; i++) {
            emu_meet("wgmma", 0xffffffffu, emu_multiply, &x.asked[i], site);
        }
        x.asked.erase(x.asked.begin(), x.asked.begin() + (ptrdiff_t)end);
        x.ends.erase(x.ends.begin());
        for (size_t &e : x.ends) {
            e -= end;
        }
    }
}
template <class D> static inline void settle(D &) {}

static inline bool emu_is_bf16(bf16) { return true; }
static inline bool emu_is_bf16(f16) { return false; }
static inline void emu_ask(const emu_product &p) {
    emu_products_of[emu_self->number].asked.push_back(p);
}
template <class T>
static inline void wgmma_ss(float (&d)[16][4], uint64_t a, uint64_t b, int keep, T,
                            emu_site site = EMU_SITE) {
    emu_ask({d, 16, NULL, a, b, false, keep != 0, emu_is_bf16(T()), site});
}
template <int N, class T>
static inline void wgmma_rs(float (&d)[N][4], const uint32_t a[4], uint64_t b, T,
                            emu_site site = EMU_SITE) {
    emu_ask({d, N, a, 0, b, true, true, emu_is_bf16(T()), site});
}

#endif
