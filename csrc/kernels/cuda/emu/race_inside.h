/* What the race detector knows. race_order.cc keeps the clocks, race_access.cc the records.
 *
 * Clocks. Every thread counts epochs: a new one begins whenever it gives others to know what it has
 * done. What thread t knows of thread u is the last epoch of u that lies before t's next access:
 *   of all threads of the block   the epochs at the last __syncthreads
 *   of the lanes of its warp      by __syncwarp, a number per lane
 *   of others, in any block       by other barriers, and by fences around atomic operations:
 *                                 vectors that are shared and never changed
 * An access of u in epoch e is ordered before one of t if t knows of epoch e of u.
 *
 * Fences. What a thread knows at a __threadfence goes with its next atomic operations, and with
 * those of other threads of its block after a barrier; who then changes the same word atomically
 * knows it after a fence of its own, or after a barrier and a fence.
 *
 * Launches that may start early. chain is the first launch that may still be under way; a thread
 * that has waited knows that those from beyond on are over. */
#ifndef INF_EMU_RACE_INSIDE_H
#define INF_EMU_RACE_INSIDE_H

#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/emu/race.h"

typedef std::shared_ptr<const std::vector<uint32_t>> emu_clocks; /* an epoch per thread */
typedef std::map<uint32_t, emu_clocks> emu_knowledge;            /* per block of the launch */

struct emu_racer {
    uint32_t epoch, lanes[32];
    emu_knowledge known, fenced, pending; /* pending: acquired, and not yet fenced */
};

enum { EMU_WRITES = 1, EMU_ATOMIC = 2, EMU_RECORDS = 4 };

/* An access. */
struct emu_record {
    const void *from; /* where in the code; NULL: none */
    uint32_t launch, block, epoch;
    uint16_t thread;
    uint8_t bytes, flags; /* a bit per byte of the cell */
};

/* The last accesses to 8 bytes of memory. */
struct emu_cell {
    emu_record records[EMU_RECORDS];
};

/* Memory that is watched. */
struct emu_region {
    uintptr_t from, to;
    emu_cell *cells;
    bool shared;
};

/* One OS thread's detector. */
struct emu_detector {
    std::vector<emu_racer> racers{EMU_THREADS};
    std::vector<uint32_t> at_barrier;  /* epochs at the last __syncthreads */
    emu_knowledge fenced, pending;     /* of all threads, as of the last __syncthreads */
    emu_knowledge named[EMU_BARRIERS]; /* of who came to a named barrier */
    std::unordered_map<const void *, emu_knowledge> objects; /* barriers in shared memory */
    std::unordered_map<const void *, emu_knowledge> words;   /* changed by atomic operations */
    uint32_t launch = 0, block = 0;
    uint32_t chain = 0, beyond = 0;
    bool anyone_waited = true; /* in the launch under way */
    const void *stream = NULL; /* of the last launch */
    uint64_t step = 0;
    emu_region dynamic = {}, statics = {}; /* shared memory */
    emu_region recent = {};                /* the allocation that was last touched */
    uint32_t recent_version = 0;
};

emu_detector *emu_detector_of_thread();
/* Shared memory of a launch. */
void emu_watch_shared(emu_detector *d, const emu_machine *m);
/* Whether the access lies before what the thread does next. */
bool emu_is_ordered(const emu_detector *d, const emu_thread *t, const emu_record &r);
/* An atomic change of a word: fenced knowledge goes to it, its knowledge to the thread. */
void emu_race_atomic(const void *word);

#endif
