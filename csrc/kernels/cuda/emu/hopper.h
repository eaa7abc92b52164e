/* The wrappers of hopper.cuh, after the PTX ISA: wgmma on descriptors. A product happens as late
 * as it may: when its group is waited for, from what registers and shared memory hold by then. */
#ifndef INF_EMU_HOPPER_H
#define INF_EMU_HOPPER_H

#include "kernels/cuda/emu/boxes.h"
#include "kernels/cuda/emu/emu.h"

static inline uint32_t shared_address(const void *p, emu_site site = EMU_SITE) {
    return emu_window_address(p, site);
}

/* ---- products ---- */

struct emu_product {
    float (*d)[4];
    int groups;        /* N / 8 */
    const uint32_t *a; /* in registers; NULL: descriptor */
    uint64_t a_at, b_at;
    bool b_mn_major, keep, is_bf16;
    emu_site site;
};
void emu_ask_product(const emu_product &p);
void emu_commit_products();
void emu_wait_products(int n, emu_site site);

template <int n> static inline void take_registers() {}
template <int n> static inline void give_registers() {}
static inline void wgmma_fence() {}
static inline void wgmma_commit() { emu_commit_products(); }
template <int n> static inline void wgmma_wait(emu_site site = EMU_SITE) {
    emu_wait_products(n, site);
}
template <class D> static inline void settle(D &) {}

static inline bool emu_is_bf16(bf16) { return true; }
static inline bool emu_is_bf16(f16) { return false; }
template <class T>
static inline void wgmma_ss(float (&d)[16][4], uint64_t a, uint64_t b, int keep, T,
                            emu_site site = EMU_SITE) {
    emu_ask_product({d, 16, NULL, a, b, false, keep != 0, emu_is_bf16(T()), site});
}
template <int N, class T>
static inline void wgmma_rs(float (&d)[N][4], const uint32_t a[4], uint64_t b, T,
                            emu_site site = EMU_SITE) {
    emu_ask_product({d, N, a, 0, b, true, true, emu_is_bf16(T()), site});
}

#endif
