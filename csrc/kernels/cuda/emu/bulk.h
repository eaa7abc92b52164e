/* The wrappers of bulk.cuh: barriers in shared memory that count arrivals and bytes, and copies
 * that are waited for by them.
 *
 * A copy happens when somebody waits for its barrier and not before, and what it will overwrite is
 * spoilt at once: so a read before the wait, and a copy into what is still being read, both show. A
 * block must not end while copies are under way. */
#ifndef INF_EMU_BULK_H
#define INF_EMU_BULK_H

#include <functional>

#include "kernels/cuda/emu/block.h"

void emu_bar_init(uint64_t *bar, int count, emu_site site);
/* An arrival, and bytes that the phase waits for too. */
void emu_bar_arrive(uint64_t *bar, uint32_t bytes, emu_site site);
void emu_bar_wait(uint64_t *bar, uint32_t parity, emu_site site);
/* Spoils [to, to + bytes) of shared memory; land() is called when the barrier is waited for. */
void emu_copy_later(void *to, uint32_t bytes, uint64_t *bar, std::function<void()> land,
                    emu_site site);
void emu_bulk_copy(void *to, const void *from, uint32_t bytes, uint64_t *bar, emu_site site);

static inline void mbar_init(uint64_t *bar, int count = 1, emu_site site = EMU_SITE) {
    emu_bar_init(bar, count, site);
}
static inline void mbar_arrive(uint64_t *bar, emu_site site = EMU_SITE) {
    emu_bar_arrive(bar, 0, site);
}
static inline void mbar_init_fence() {}
static inline void bulk_fence() {}
static inline void mbar_expect(uint64_t *bar, uint32_t bytes, emu_site site = EMU_SITE) {
    emu_bar_arrive(bar, bytes, site);
}
static inline void bulk_copy(void *shared, const void *global, uint32_t bytes, uint64_t *bar,
                             emu_site site = EMU_SITE) {
    emu_bulk_copy(shared, global, bytes, bar, site);
}
static inline void mbar_wait(uint64_t *bar, uint32_t parity, emu_site site = EMU_SITE) {
    emu_bar_wait(bar, parity, site);
}

#endif
