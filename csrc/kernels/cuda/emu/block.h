/* A thread block under way: its threads, the barriers between them, and the meetings of a warp's
 * lanes.
 *
 * A meeting is any operation that takes something of several lanes: shuffles, votes, ldmatrix, mma.
 * Each lane brings a pointer to its operands, on its own stack, and waits; the last one does the
 * operation for all. Lanes that have ended are not waited for, as on sm_70 and later. */
#ifndef INF_EMU_BLOCK_H
#define INF_EMU_BLOCK_H

#include <stdint.h>

#include "kernels/cuda/emu/types.h"

struct emu_fiber;
struct emu_warp;
struct emu_block;
struct emu_machine;

/* Where in the source something was called, for messages. As a default argument, EMU_SITE is where
 * the function with that argument is called. */
struct emu_site {
    const char *file;
    int line;
    emu_site() = default;
    constexpr emu_site(const char *f, int l) : file(f), line(l) {}
};
#define EMU_SITE emu_site(__builtin_FILE(), __builtin_LINE())

/* Copies that a thread has asked for by cp.async; each belongs to a group. */
struct emu_copies;

struct emu_thread {
    uint3 index;     /* threadIdx */
    uint32_t number; /* within the block, x fastest */
    uint32_t lane;   /* within the warp */
    emu_block *block;
    emu_warp *warp;
    emu_fiber *fiber; /* NULL: it was not started, or has ended */
    emu_copies *copies;
    /* While it waits, and for messages: */
    const char *what; /* NULL: it does not wait */
    emu_site site;
    uint32_t mask; /* of the meeting; a barrier's number, or its place in shared memory */
    void *operands;
    bool waited;     /* for the kernels in front, where this one may start early */
    uint32_t result; /* of a barrier */
    uint32_t pause;  /* atomic operations since it last gave way */
};

/* One kernel launch; what all of its blocks share. */
struct emu_grid {
    const char *kernel;
    dim3 grid, block;
    size_t shared; /* bytes of dynamic shared memory */
    bool early;    /* may start before the kernel in front has ended */
    void (*run)(const void *function, const void *args);
    const void *function, *args;
    const void *stream; /* what is done there, one after another, has steps */
    uint64_t step;
};

struct emu_block {
    uint3 index; /* blockIdx */
    const emu_grid *grid;
    emu_machine *machine;
    uint8_t *shared;
};

/* The thread that is running; NULL on the host. Never moves to another OS thread. */
extern __thread emu_thread *emu_self;

#define threadIdx (emu_self->index)
#define blockIdx  (emu_self->block->index)
#define blockDim  (emu_self->block->grid->block)
#define gridDim   (emu_self->block->grid->grid)
static const int warpSize = 32;

#define INF_SHARED(name) uint8_t *const name = emu_self->block->shared

/* Does the operation of a meeting: operands of the lanes that came, NULL for the others. */
typedef void (*emu_operation)(void *const operands[32], uint32_t here);

/* Lanes wait for each other, and know then what the others have done. */
void emu_sync_lanes(uint32_t mask, emu_site site);
void emu_meet(const char *what, uint32_t mask, emu_operation op, void *operands, emu_site site);

enum emu_reduction { EMU_NONE, EMU_OR, EMU_AND, EMU_COUNT };
/* Barrier `id`. threads 0: all of the block that have not ended. arrive: does not wait. Returns the
 * reduction of `value` over the threads. */
uint32_t emu_barrier(const char *what, uint32_t id, uint32_t threads, bool arrive,
                     emu_reduction reduction, uint32_t value, emu_site site);
#ifdef INF_EMU_RACES /* race.h */
void emu_race_fence();
void emu_race_waited();
#define EMU_QUIET __attribute__((no_sanitize("thread"))) /* no access of the kernel's */
#else
static inline void emu_race_fence() {}
static inline void emu_race_waited() {}
#define EMU_QUIET
#endif
/* Lets others run. */
void emu_yield();
/* Lanes of this warp that exist and have not ended. */
uint32_t emu_alive_lanes();
/* For loops that wait for another thread's atomic operation: gives way now and then. */
static inline void emu_pause() {
    if (emu_self != NULL && ++emu_self->pause % 16 == 0) {
        emu_yield();
    }
}

/* Runs all blocks of a grid on this OS thread. */
void emu_run(const emu_grid *grid);

/* Says what is wrong, where and in which thread, and ends the process. */
[[noreturn]] void emu_fault(emu_site site, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
