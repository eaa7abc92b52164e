/* Memory of a GPU that is none, for tests of what verbs makes of it. */
#ifndef INF_TESTS_FAKE_GPU_MEMORY_H
#define INF_TESTS_FAKE_GPU_MEMORY_H

#include <errno.h>
#include <string.h>

#include "check.h"
#include "infinite/verbs.h"

typedef struct {
    int export_rc, peermem_rc, reg_rc, dmabuf_rc; /* what each says */
    int fd;                                       /* exported last */
    int flushes, loads, stores, registered;
    uint64_t iova;
} fake_gpu;

static fake_gpu gpu;

static inline int fake_flush(void *arg, uint64_t address, uint64_t bytes) {
    CHECK(address == 0x7000 + 64 && bytes == 128);
    ((fake_gpu *)arg)->flushes++;
    return 0;
}

static inline int fake_copy_out(void *arg, void *host, uint64_t address, uint64_t bytes) {
    (void)address;
    memset(host, 0x11, bytes);
    ((fake_gpu *)arg)->loads++;
    return 0;
}

static inline int fake_copy_in(void *arg, uint64_t address, const void *host, uint64_t bytes) {
    (void)address, (void)host, (void)bytes;
    ((fake_gpu *)arg)->stores++;
    return EIO;
}

#endif
