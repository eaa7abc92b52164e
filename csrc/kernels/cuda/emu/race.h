/* Races: two threads touch the same bytes, one of them writes, and nothing orders the two.
 *
 * With INF_EMU_RACES, kernels are compiled with -fsanitize=thread, which makes the compiler call a
 * function at each access to memory; race_access.cc is those functions. What orders accesses in
 * CUDA is known: barriers of every kind, __syncwarp (but no shuffle or vote), __threadfence with an
 * atomic operation. Looked at is shared memory and what the runtime allocated, byte by byte: within
 * a block, between the blocks of a launch, and, where a kernel may start early, between it and the
 * ones in front. The order in which threads happened to run does not matter: a missing barrier is
 * seen in any.
 *
 * A race is told once per pair of places in the source; at the end the process fails. */
#ifndef INF_EMU_RACE_H
#define INF_EMU_RACE_H

#include "kernels/cuda/emu/inside.h"

#ifdef INF_EMU_RACES

void emu_race_launch(emu_machine *m);
void emu_race_block(emu_machine *m);
/* All threads of the block; lanes of a warp. */
void emu_race_barrier(emu_machine *m);
void emu_race_lanes(emu_machine *m, emu_warp *w, uint32_t lanes);
/* A named barrier: who comes, who goes on, and its end. */
void emu_race_arrive(emu_thread *t, uint32_t barrier);
void emu_race_release(emu_thread *t, uint32_t barrier);
void emu_race_barrier_over(uint32_t barrier);
/* What the thread knows goes to an object in shared memory; what that has, to the thread. */
void emu_race_post(const void *object);
void emu_race_take(const void *object);
/* An access that the emulator makes for this thread. */
void emu_race_note(const void *p, size_t bytes, bool writes, const void *from);
/* An allocation is given back. */
void emu_race_forget(const void *p);

#else

static inline void emu_race_launch(emu_machine *) {}
static inline void emu_race_block(emu_machine *) {}
static inline void emu_race_barrier(emu_machine *) {}
static inline void emu_race_lanes(emu_machine *, emu_warp *, uint32_t) {}
static inline void emu_race_arrive(emu_thread *, uint32_t) {}
static inline void emu_race_release(emu_thread *, uint32_t) {}
static inline void emu_race_barrier_over(uint32_t) {}
static inline void emu_race_post(const void *) {}
static inline void emu_race_take(const void *) {}
static inline void emu_race_note(const void *, size_t, bool, const void *) {}
static inline void emu_race_forget(const void *) {}

#endif
#endif
