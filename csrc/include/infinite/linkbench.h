/* Measuring a link: round trips and bandwidth, timed here so that nothing else runs in between.
 *
 * Both ends call inf_link_bench with the same bench, over a link on which nothing else is under
 * way; how they agree on it is theirs. The client end times, the server end answers:
 *
 *   latency     the client sends a message, the server answers with one as long; each round's time
 *   bandwidth   the client sends as fast as there is room; one time for all, from the first message
 *               until the client hears that the last has arrived
 *   puts        likewise, but what is sent is put into memory that the server grants, in stretches
 *               that do not follow each other at the client, as the blocks of a KV cache do; a
 * small message tells of each
 *
 * An empty message ends a phase, and another one answers it. A run is two phases: rounds to warm
 * up, then those that count. */
#ifndef INFINITE_LINKBENCH_H
#define INFINITE_LINKBENCH_H

#include "infinite/link.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { INF_BENCH_LATENCY = 1, INF_BENCH_BANDWIDTH = 2, INF_BENCH_PUTS = 3 };
enum {
    INF_BENCH_WAITS = 1,  /* this end sleeps when it has nothing to do; else it polls, except the
                             server of bandwidth and puts, whose CPU may be needed for the bytes */
    INF_BENCH_COPIES = 2, /* messages are written into their slots and read out of them: without
                             that a link through shared memory moves no byte of them */
};

typedef struct inf_bench {
    uint32_t kind;  /* INF_BENCH_* */
    uint32_t flags; /* INF_BENCH_WAITS | INF_BENCH_COPIES */
    uint64_t bytes; /* of a message, 1..slot_bytes; puts: at once, 1..the region's bytes */
    uint64_t warmup, rounds;
    int64_t duration_ns;  /* the client ends a phase after so long, if its rounds are not over */
    int64_t silence_ns;   /* longest wait for the peer to do anything: INF_ETIMEOUT */
    const uint32_t *stop; /* another thread makes it not 0: INF_ETIMEOUT. NULL: none does */
} inf_bench;

typedef struct inf_bench_result {
    uint64_t rounds; /* that counted */
    int64_t took_ns; /* all of them */
} inf_bench_result;

_Static_assert(sizeof(inf_bench) == 56, "inf_bench is filled in by Go");

/* ns gets each round's time at the client of a latency run and has room for `rounds`, else NULL;
 * out may be NULL at the server. Puts need a region, named before with inf_link_use_region. After a
 * status < 0, which err explains, the two ends are out of step: close the link. */
int inf_link_bench(inf_link *link, const inf_bench *bench, int64_t *ns, inf_bench_result *out,
                   inf_err *err);

#ifdef __cplusplus
}
#endif
#endif
