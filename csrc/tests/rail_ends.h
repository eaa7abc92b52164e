/* What tests of moves over rails share: the ends of a lane, over shm, tcp and verbs. */
#ifndef INF_TESTS_RAIL_ENDS_H
#define INF_TESTS_RAIL_ENDS_H

/* Blocks of 24 KiB, so that moves are many pieces, in messages too. */
#define W_BLOCK_TOKENS 32

#include "verbs_pair.h"

#include "wire_raw.h"

enum { BLOCKS = 512, PEER = 3 };

static rdma_ports ports;

/* Index 0 is the client's end. crossed: over verbs, from the second port to the first. */
static inline void rail_ends(uint32_t provider, uint64_t bytes, bool crossed, inf_link *end[2]) {
    if (provider != INF_PROVIDER_VERBS) {
        w_link(provider, bytes, &end[0], &end[1], NULL);
    } else {
        rdma_ports p = ports;
        if (crossed) {
            p.device[0] = ports.device[1], p.device[1] = ports.device[0];
            p.port[0] = ports.port[1], p.port[1] = ports.port[0];
        }
        pair_links(&p, (pair_shape){W_SLOTS, bytes, 0}, end, NULL);
    }
}

/* Over each provider that there is; verbs where there are RDMA ports. */
static inline void each_provider(void (*run)(uint32_t provider)) {
    static const char *const NAMES[] = {"", "shm", "tcp", "verbs"};
    for (uint32_t provider = INF_PROVIDER_SHM; provider <= INF_PROVIDER_TCP; provider++) {
        printf("%s\n", NAMES[provider]);
        run(provider);
    }
    if (rdma_find(&ports)) {
        /* Rails die here when the tests say so: no packet counts as lost, 8 s long, because a
         * machine is slow. */
        pair_timeout = 18;
        rdma_open(&ports);
        printf("%s\n", NAMES[INF_PROVIDER_VERBS]);
        run(INF_PROVIDER_VERBS);
        rdma_close(&ports);
    }
}

#endif
