/* The wrappers of prelude.cuh around single machine instructions. */
#ifndef INF_EMU_MACHINE_H
#define INF_EMU_MACHINE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cuda/emu/block.h"

/* ---- number formats: to the nearest, ties to even ---- */

uint16_t emu_to_bf16(float x);
uint16_t emu_to_f16(float x);
float f16_to_float(uint16_t h);

static inline float bits_to_float(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
static inline uint32_t pack_bf16x2(float lo, float hi) {
    return (uint32_t)emu_to_bf16(hi) << 16 | emu_to_bf16(lo);
}
static inline uint32_t pack_f16x2(float lo, float hi) {
    return (uint32_t)emu_to_f16(hi) << 16 | emu_to_f16(lo);
}
static inline uint32_t mul_f16x2(uint32_t a, uint32_t b) { /* f32 holds such a product whole */
    return pack_f16x2(f16_to_float((uint16_t)a) * f16_to_float((uint16_t)b),
                      f16_to_float((uint16_t)(a >> 16)) * f16_to_float((uint16_t)(b >> 16)));
}
static inline float exp2_fast(float x) {
    float y = exp2f(x < -126.0f ? -INFINITY : x);
    return x != x ? x : y;
}

/* ---- memory ---- */

static inline void prefetch_line(const void *) {}
static inline uint4 load_once(const void *p, emu_site site = EMU_SITE) {
    if ((uintptr_t)p % 16 != 0) {
        emu_fault(site, "load_once of %p, which is not 16-byte aligned", p);
    }
    return *(const uint4 *)p;
}
static inline void start_successor() {}
static inline void after_predecessor() {
    emu_self->waited = true;
    emu_race_waited();
}

/* A copy is performed by the wait for its group; until then its destination is garbage. */
emu_copies *emu_copies_new();
void emu_copies_free(emu_copies *c);
void emu_copies_clear(emu_copies *c);
void cp_async_16(void *shared, const void *global, bool valid, emu_site site = EMU_SITE);
void cp_async_commit();
void emu_copies_wait(int n);
template <int n> static inline void cp_async_wait() { emu_copies_wait(n); }

/* ---- matrices ---- */

void ldmatrix_x4(uint32_t r[4], const void *row, emu_site site = EMU_SITE);
void ldmatrix_x4_trans(uint32_t r[4], const void *row, emu_site site = EMU_SITE);
void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], emu_site site = EMU_SITE);
void mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2], emu_site site = EMU_SITE);

/* ---- named barriers ---- */

static inline void bar_sync(int id, int threads, emu_site site = EMU_SITE) {
    emu_barrier("bar_sync", (uint32_t)id, (uint32_t)threads, false, EMU_NONE, 0, site);
}
static inline void bar_arrive(int id, int threads, emu_site site = EMU_SITE) {
    emu_barrier("bar_arrive", (uint32_t)id, (uint32_t)threads, true, EMU_NONE, 0, site);
}

#endif
