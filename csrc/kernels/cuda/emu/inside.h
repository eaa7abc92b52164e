/* What an OS thread needs to run blocks, and who of a block's threads is next. Shared by block.cc,
 * meet.cc and message.cc.
 *
 * Order. Four ways, drawn per block: from the first thread on, from the last one, at random, and
 * warp by warp in a random order of warps, in which one warp gets as far ahead as barriers let it.
 * What is missing a barrier goes wrong in one of them. */
#ifndef INF_EMU_INSIDE_H
#define INF_EMU_INSIDE_H

#include <vector>

#include "kernels/cuda/emu/block.h"
#include "kernels/cuda/emu/fiber.h"

enum { EMU_THREADS = 1024, EMU_WARPS = EMU_THREADS / 32, EMU_BARRIERS = 16 };

struct emu_meeting {
    uint32_t mask, here;
    emu_operation op;
    const char *what;
};

struct emu_warp {
    uint32_t alive; /* lanes that exist and have not ended */
    uint32_t ready; /* lanes that could run, but the one that runs */
    uint32_t number, rank;
    size_t n_meetings;
    emu_meeting meetings[32]; /* each lane waits in one at most */
};

struct emu_named_barrier {
    uint32_t threads, count; /* expected (0: all), arrived */
    uint32_t waiting[EMU_WARPS];
    emu_reduction reduction;
    uint32_t value;
    const char *what;
    emu_site site;
};

enum emu_order { EMU_FORWARD, EMU_BACKWARD, EMU_RANDOM, EMU_WARPWISE };

/* Made at an OS thread's first launch. */
struct emu_machine {
    emu_thread threads[EMU_THREADS];
    emu_warp warps[EMU_WARPS];
    emu_named_barrier barriers[EMU_BARRIERS];
    uint32_t for_all; /* bits of those that somebody waits in, and that expect all threads */
    emu_block block;
    uint32_t n_threads, n_warps, n_alive;
    uint32_t ready; /* bit of rank: the warp has lanes that could run */
    emu_warp *by_rank[EMU_WARPS];
    emu_order order;
    uint64_t seed, random, launches;
    emu_fiber *host, *current;
    emu_thread *starting; /* for the fiber that is switched to */
    std::vector<emu_fiber *> idle, all;

    emu_machine();
    ~emu_machine();
};

static inline uint64_t emu_random(emu_machine *m) { /* xorshift64* */
    uint64_t x = m->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    m->random = x;
    return x * 0x2545f4914f6cdd1du;
}

/* The first bit from a random place on. */
static inline uint32_t emu_random_bit(emu_machine *m, uint32_t bits) {
    uint32_t from = (uint32_t)(emu_random(m) >> 59);
    uint32_t turned = bits >> from | bits << ((32 - from) % 32);
    return (from + (uint32_t)__builtin_ctz(turned)) % 32;
}

static inline void emu_make_ready(emu_machine *m, emu_thread *t) {
    t->what = NULL;
    t->warp->ready |= 1u << t->lane;
    m->ready |= 1u << t->warp->rank;
}

/* Takes a thread that can run; NULL: there is none. */
static inline emu_thread *emu_take_ready(emu_machine *m, emu_order order) {
    if (m->ready == 0) {
        return NULL;
    }
    uint32_t rank =
        order == EMU_RANDOM ? emu_random_bit(m, m->ready) : (uint32_t)__builtin_ctz(m->ready);
    emu_warp *w = m->by_rank[rank];
    uint32_t lane = order == EMU_FORWARD    ? (uint32_t)__builtin_ctz(w->ready)
                    : order == EMU_BACKWARD ? 31 - (uint32_t)__builtin_clz(w->ready)
                                            : emu_random_bit(m, w->ready);
    w->ready &= ~(1u << lane);
    if (w->ready == 0) {
        m->ready &= ~(1u << rank);
    }
    return &m->threads[w->number * 32 + lane];
}

/* Goes on with another thread, from the fiber of one that waits. */
void emu_give_way(emu_machine *m, emu_thread *me);
/* Notes what the running thread waits for, and gives way until somebody makes it ready. */
void emu_wait(const char *what, uint32_t mask, emu_site site);
/* Meetings and barriers that waited for a thread that has just ended. */
void emu_leave(emu_machine *m, emu_thread *t);

/* At a block's end: nothing may be under way. */
void emu_bulk_end(const emu_machine *m);

/* What the barriers in shared memory lack that somebody waits for. */
void emu_print_bars();
void emu_print_place(const emu_machine *m);
/* Ends the process: every thread waits. */
[[noreturn]] void emu_nobody_can_run(const emu_machine *m);

#endif
