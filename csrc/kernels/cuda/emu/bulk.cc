/* Barriers in shared memory, and copies that are waited for by them. */
#include "kernels/cuda/emu/bulk.h"

#include <algorithm>
#include <stdio.h>
#include <string.h>

#include "kernels/cuda/emu/inside.h"
#include "kernels/cuda/emu/race.h"

namespace {

struct bar_state {
    uint16_t count, pending;
    int32_t bytes; /* twice what is announced and not landed; the lowest bit: the phase's parity */
};
static_assert(sizeof(bar_state) == sizeof(uint64_t), "");

struct copy {
    uint64_t *bar;
    uint32_t bytes;
    std::function<void()> land;
    emu_site site;
};

/* Who waits for a barrier's phase to end, or for a copy that it may land. */
struct waiter {
    uint64_t *bar;
    emu_thread *thread;
};

thread_local std::vector<copy> under_way;
thread_local std::vector<waiter> waiters;

void wake(const uint64_t *bar) {
    auto rest = std::remove_if(waiters.begin(), waiters.end(), [=](const waiter &w) {
        if (w.bar == bar) {
            emu_make_ready(w.thread->block->machine, w.thread);
        }
        return w.bar == bar;
    });
    waiters.erase(rest, waiters.end());
}

bar_state *state_of(uint64_t *bar, emu_site site) {
    ptrdiff_t at = (const uint8_t *)bar - emu_self->block->shared;
    if ((uintptr_t)bar % 8 != 0 || at < 0 || (size_t)at + 8 > emu_self->block->grid->shared) {
        emu_fault(site, "a barrier at %p, which is not aligned, or not in shared memory",
                  (void *)bar);
    }
    return (bar_state *)bar;
}

void end_phase(uint64_t *bar) {
    bar_state *b = (bar_state *)bar;
    if (b->pending == 0 && b->bytes >> 1 == 0) {
        b->pending = b->count;
        b->bytes ^= 1;
        wake(bar);
    }
}

/* Those of the barrier; false: there are none. */
bool land(uint64_t *bar) {
    auto rest = std::remove_if(under_way.begin(), under_way.end(), [=](const copy &c) {
        if (c.bar == bar) {
            c.land();
            ((bar_state *)bar)->bytes -= 2 * (int32_t)c.bytes;
        }
        return c.bar == bar;
    });
    if (rest == under_way.end()) {
        return false;
    }
    under_way.erase(rest, under_way.end());
    end_phase(bar);
    return true;
}

} // namespace

void emu_bar_init(uint64_t *bar, int count, emu_site site) {
    bar_state *b = state_of(bar, site);
    if (count <= 0 || count > UINT16_MAX) {
        emu_fault(site, "a barrier for %d arrivals", count);
    }
    *b = {(uint16_t)count, (uint16_t)count, 0};
    wake(bar);
    emu_race_note(bar, 8, true, __builtin_return_address(0));
}

void emu_bar_arrive(uint64_t *bar, uint32_t bytes, emu_site site) {
    bar_state *b = state_of(bar, site);
    if (b->pending == 0) {
        emu_fault(site, "an arrival beyond the barrier's count of %u", b->count);
    }
    emu_race_post(bar);
    b->bytes += 2 * (int32_t)bytes;
    b->pending--;
    end_phase(bar);
}

void emu_bar_wait(uint64_t *bar, uint32_t parity, emu_site site) {
    bar_state *b = state_of(bar, site);
    while ((uint32_t)(b->bytes & 1) == parity) {
        if (!land(bar)) {
            waiters.push_back({bar, emu_self});
            uint32_t at = (uint32_t)((const uint8_t *)bar - emu_self->block->shared);
            emu_wait("mbar_wait", at, site);
        }
    }
    emu_race_take(bar);
}

void emu_copy_later(void *to, uint32_t bytes, uint64_t *bar, std::function<void()> land_it,
                    emu_site site) {
    (void)state_of(bar, site);
    ptrdiff_t at = (uint8_t *)to - emu_self->block->shared;
    if (at < 0 || (size_t)at + bytes > emu_self->block->grid->shared) {
        emu_fault(site, "a copy of %u bytes to %p, which is not in shared memory", bytes, to);
    }
    emu_race_note(to, bytes, true, __builtin_return_address(0));
    emu_race_post(bar);
    memset(to, 0xff, bytes);
    under_way.push_back({bar, bytes, std::move(land_it), site});
    wake(bar);
}

void emu_bulk_copy(void *to, const void *from, uint32_t bytes, uint64_t *bar, emu_site site) {
    if (((uintptr_t)to | (uintptr_t)from | bytes) % 16 != 0) {
        emu_fault(site, "a copy of %u bytes from %p to %p: not multiples of 16", bytes, from, to);
    }
    emu_race_note(from, bytes, false, __builtin_return_address(0));
    emu_copy_later(
        to, bytes, bar, [=] { memcpy(to, from, bytes); }, site);
}

void emu_print_bars() {
    for (size_t i = 0; i < waiters.size(); i++) {
        if (i > 0 && waiters[i].bar == waiters[i - 1].bar) {
            continue;
        }
        const bar_state *b = (const bar_state *)waiters[i].bar;
        size_t copies = 0;
        for (const copy &c : under_way) {
            copies += c.bar == waiters[i].bar;
        }
        const emu_block *block = waiters[i].thread->block;
        fprintf(stderr,
                "  barrier %#x, phase %d: %u of %u arrivals and %d bytes are missing, %zu copies "
                "are under way\n",
                (unsigned)((const uint8_t *)b - block->shared), b->bytes & 1, b->pending, b->count,
                b->bytes >> 1, copies);
    }
}

void emu_bulk_end(const emu_machine *m) {
    if (!under_way.empty()) {
        emu_print_place(m);
        emu_fault(under_way[0].site, "a block ended while %zu copies to it were under way",
                  under_way.size());
    }
}
