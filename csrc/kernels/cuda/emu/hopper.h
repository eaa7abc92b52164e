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

/* ---- tensor maps of four dimensions, 16-bit numbers, 128-byte swizzle: boxes are 64 numbers wide
 * ---- */

struct alignas(64) tensor_map {
    const uint8_t *base;
    uint64_t size[4], pitch[4]; /* numbers; bytes from one to the next */
    uint32_t box[4];
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
    int32_t at[4];
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
    const tensor_map &m = *x.map;
    uint32_t to = x.to, i[4];
    for (i[3] = 0; i[3] < m.box[3]; i[3]++) {
        for (i[2] = 0; i[2] < m.box[2]; i[2]++) {
            for (i[1] = 0; i[1] < m.box[1]; i[1]++) {
                for (i[0] = 0; i[0] < m.box[0]; i[0]++, to += 2) {
                    const uint8_t *from = m.base;
                    bool there = true;
                    for (int k = 0; k < 4; k++) {
                        int64_t at = (int64_t)x.at[k] + i[k];
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
    x.bar->bytes -= (int32_t)(to - x.to) * 2;
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

static inline void copy_box(void *shared, const tensor_map *map, int32_t at, uint64_t *bar,
                            emu_site site = EMU_SITE) {
    uint32_t to = window_address(shared);
    if (to % 1024 != 0 || (uintptr_t)map % 64 != 0 || map->box[0] != 64) {
        emu_fault(site, "copy_box to %#x by the map at %p: not aligned, or not 128 bytes wide", to,
                  (const void *)map);
    }
    memset(shared, 0xff, map->box[1] * map->box[2] * map->box[3] * 128); /* whole atoms */
    emu_boxes.push_back({to, map, {0, 0, 0, at}, (emu_mbarrier *)bar, site});
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
