/* A GPU's pool as memory for puts: the functions that registering it asks for (verbs.h), from those
 * of the backend. The lane for copies is the region's own, under a lock: any thread may ask. */
#include "dist/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void *pointer(uint64_t address) {
    void *p = NULL;
    uintptr_t number = (uintptr_t)address;
    memcpy(&p, &number, sizeof p);
    return p;
}

static int export_dmabuf(void *arg, uint64_t address, uint64_t bytes, int *fd, uint64_t *offset) {
    inf_dist *d = arg;
    return d->ops->nic_export(d->backend, pointer(address), bytes, fd, offset);
}

static int has_peermem(void *arg) {
    inf_dist *d = arg;
    return d->ops->nic_peermem(d->backend);
}

static int flush(void *arg, uint64_t address, uint64_t bytes) {
    inf_dist *d = arg;
    (void)address, (void)bytes; /* all of the device's memory at once */
    return d->ops->nic_flush(d->backend);
}

static int copy(inf_dist *d, void *host, uint64_t address, uint64_t bytes, bool out) {
    pthread_mutex_lock(&d->memory_lock);
    int status = inf_lane_take(d, &d->memory_lane);
    if (status == INF_OK) {
        inf_lane *lane = d->memory_lane.lane;
        if (out) {
            d->ops->copy_out(lane, host, pointer(address), bytes);
        } else {
            d->ops->copy_in(lane, pointer(address), host, bytes);
        }
        status = inf_lane_sync(d, &d->memory_lane);
    }
    pthread_mutex_unlock(&d->memory_lock);
    return status == INF_OK ? 0 : EIO;
}

static int copy_out(void *arg, void *host, uint64_t address, uint64_t bytes) {
    return copy(arg, host, address, bytes, true);
}

static int copy_in(void *arg, uint64_t address, const void *host, uint64_t bytes) {
    void *from = NULL;
    memcpy(&from, &host, sizeof from); /* copy_in does not write there */
    return copy(arg, from, address, bytes, false);
}

static int pin(void *arg, void *host, uint64_t bytes) {
    inf_dist *d = arg;
    return d->ops->host_pin(d->backend, host, bytes) == INF_OK ? 0 : ENOMEM;
}

static void unpin(void *arg, void *host) {
    inf_dist *d = arg;
    d->ops->host_unpin(d->backend, host);
}

const inf_memory_ops *inf_device_memory(inf_dist *d) {
    inf_memory_ops *m = &d->memory;
    if (m->arg != NULL) {
        return m;
    }
    if (d->ops->nic_export == NULL || inf_lane_take(d, &d->memory_lane) != INF_OK) {
        return NULL;
    }
    *m = (inf_memory_ops){.arg = d,
                          .export_dmabuf = export_dmabuf,
                          .has_peermem = has_peermem,
                          .copy_out = copy_out,
                          .copy_in = copy_in,
                          .pin = d->ops->host_pin != NULL ? pin : NULL,
                          .unpin = d->ops->host_pin != NULL ? unpin : NULL};
    /* Once, to know: memory that cannot be flushed is not to be written by a NIC. */
    m->flush = d->ops->nic_flush(d->backend) == 0 ? flush : NULL;
    return m;
}
