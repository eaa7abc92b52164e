/* Both ends of a shm link within one process. Wants _GNU_SOURCE. */
#ifndef INF_BENCH_LINK_PAIR_H
#define INF_BENCH_LINK_PAIR_H

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "infinite/link.h"

enum { PAIR_SLOTS = 3 }; /* as links of queries have at least */

/* 1: both are open. */
static inline int link_pair(uint64_t slot_bytes, inf_link **client, inf_link **server) {
    int s[2], mem = memfd_create("link", MFD_CLOEXEC), ev[2] = {eventfd(0, 0), eventfd(0, 0)};
    if (mem < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, s) != 0 ||
        ftruncate(mem, (off_t)inf_link_shm_bytes(PAIR_SLOTS, slot_bytes)) != 0) {
        return 0;
    }
    inf_link_config c = {
        INF_LINK_CLIENT, INF_PROVIDER_SHM, PAIR_SLOTS, 0, slot_bytes, s[0], mem, ev[0], ev[1]};
    inf_link_config v = {INF_LINK_SERVER, INF_PROVIDER_SHM, PAIR_SLOTS, 0, slot_bytes, s[1],
                         dup(mem),        dup(ev[1]),       dup(ev[0])};
    return inf_link_open(&c, client, NULL) == INF_OK && inf_link_open(&v, server, NULL) == INF_OK;
}

#endif
