/* Registering memory for puts: which way, and what that way asks for later.
 *
 * The ways are tried in the order dma-buf, peer memory, bounce, and each that is not taken leaves
 * its reason, for start-up to print. Memory of a GPU that cannot be flushed is not registered at
 * all: what a peer wrote there could be read before it is there.
 *
 * A region is registered for local access and, for grants, to have windows bound over it. Its own
 * key gives no remote access.
 *
 * The device finds a dma-buf's bytes at addresses that are ours to choose. They are the offsets in
 * the dma-buf, because that is what the library notes as the region's address, and drivers check
 * windows against it. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "transport/verbs/verbs_impl.h"

enum { ACCESS = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND };

/* Notes why a way was not taken. */
static void note(inf_region *r, const char *way, const char *reason) {
    size_t used = strlen(r->why);
    snprintf(r->why + used, sizeof r->why - used, "%s%s: %s", used ? "; " : "", way, reason);
}

static bool skips(const inf_region *r, uint32_t way) { return (r->memory.without >> way & 1) != 0; }

static bool try_dmabuf(inf_region *r) {
    static const char *const NAME = "dma-buf";
    const inf_memory_ops *ops = r->memory.ops;
    const inf_verbs_lib *lib = r->device->context->lib;
    if (skips(r, INF_WAY_DMABUF))
        return false;
    if (!ops->export_dmabuf || !lib->reg_dmabuf_mr) {
        note(r, NAME, ops->export_dmabuf ? "the RDMA library is too old" : "the GPU exports none");
        return false;
    }
    int fd = -1;
    uint64_t offset = 0;
    int rc = ops->export_dmabuf(ops->arg, r->memory.address, r->memory.bytes, &fd, &offset);
    if (rc != 0) {
        note(r, NAME, strerror(rc));
        return false;
    }
    errno = EIO; /* in case the driver sets nothing */
    r->mr = lib->reg_dmabuf_mr(r->device->pd, offset, r->memory.bytes, offset, fd, ACCESS);
    rc = errno;
    close(fd); /* the registration holds the memory */
    if (!r->mr) {
        note(r, NAME, strerror(rc));
        return false;
    }
    r->iova = offset;
    r->way = INF_WAY_DMABUF;
    return true;
}

static void *at(const inf_region *r, uint64_t offset) {
    uintptr_t number = (uintptr_t)(r->memory.address + offset);
    void *pointer = NULL;
    memcpy(&pointer, &number, sizeof pointer);
    return pointer;
}

/* Registers by address; errno's value if that fails. */
static int register_address(inf_region *r, uint32_t way) {
    errno = EIO;
    r->mr = r->device->context->lib->reg_mr(r->device->pd, at(r, 0), r->memory.bytes, ACCESS);
    if (!r->mr)
        return errno;
    r->iova = r->memory.address;
    r->way = way;
    return 0;
}

static bool try_peermem(inf_region *r) {
    static const char *const NAME = "peer memory";
    const inf_memory_ops *ops = r->memory.ops;
    if (skips(r, INF_WAY_PEERMEM))
        return false;
    int rc = ops->has_peermem ? ops->has_peermem(ops->arg) : ENOSYS;
    if (rc == 0)
        rc = register_address(r, INF_WAY_PEERMEM);
    if (rc != 0)
        note(r, NAME, strerror(rc));
    return rc == 0;
}

static int register_device(inf_region *r, inf_err *err) {
    const inf_memory_ops *ops = r->memory.ops;
    if (!ops)
        return inf_link_error(err, -1, INF_EINVAL,
                              "cannot register device memory without its functions");
    if (!ops->flush)
        note(r, "direct access", "the device's memory cannot be flushed");
    else if (try_dmabuf(r) || try_peermem(r))
        return INF_OK;
    if (skips(r, INF_WAY_BOUNCE) || !ops->copy_in || !ops->copy_out)
        return inf_link_error(err, -1, INF_EUNSUPPORTED,
                              "cannot register %llu bytes of device memory: %s",
                              (unsigned long long)r->memory.bytes, r->why);
    r->way = INF_WAY_BOUNCE;
    return INF_OK;
}

static int register_host(inf_region *r, inf_err *err) {
    int rc = register_address(r, INF_WAY_HOST);
    return rc == 0 ? INF_OK : inf_verbs_registration_error(err, -1, r->memory.bytes, rc);
}

int inf_region_open(inf_verbs_device *device, const inf_memory *memory, inf_region **out,
                    inf_err *err) {
    if (!device || !memory || !out || memory->bytes == 0 ||
        memory->address > UINT64_MAX - memory->bytes ||
        (memory->kind != INF_MEMORY_HOST && memory->kind != INF_MEMORY_DEVICE))
        return inf_link_error(err, -1, INF_EINVAL, "cannot register memory: %llu bytes of kind %u",
                              memory ? (unsigned long long)memory->bytes : 0,
                              memory ? memory->kind : 0);
    *out = NULL;
    if (!(device->context->attr.device_cap_flags & IBV_DEVICE_MEM_WINDOW_TYPE_2B))
        return inf_link_error(err, -1, INF_EUNSUPPORTED,
                              "cannot register memory for puts: %s has no type-2 memory windows",
                              device->context->name);
    inf_region *r = calloc(1, sizeof *r);
    if (!r)
        return inf_link_error(err, -1, INF_ENOMEM, "cannot register memory: no memory");
    inf_verbs_device_hold(device);
    r->device = device;
    r->memory = *memory;
    int rc = memory->kind == INF_MEMORY_HOST ? register_host(r, err) : register_device(r, err);
    if (rc != INF_OK) {
        inf_verbs_device_close(device);
        free(r);
        return rc;
    }
    *out = r;
    return INF_OK;
}

uint32_t inf_region_way(const inf_region *region, const char **why) {
    if (why)
        *why = region ? region->why : "";
    return region ? region->way : 0;
}

/* Checks a stretch; then the backend's status is the call's. */
static int check(const inf_region *r, uint64_t offset, uint64_t bytes, inf_err *err) {
    if (!r || bytes > r->memory.bytes || offset > r->memory.bytes - bytes)
        return inf_link_error(err, -1, INF_EINVAL,
                              "cannot use %llu bytes at %llu: the region is smaller",
                              (unsigned long long)bytes, (unsigned long long)offset);
    return INF_OK;
}

static int backend(int rc, const char *what, inf_err *err) {
    return rc == 0 ? INF_OK
                   : inf_link_error(err, -1, INF_EIO, "cannot %s device memory: %s", what,
                                    strerror(rc));
}

int inf_region_flush(inf_region *r, uint64_t offset, uint64_t bytes, inf_err *err) {
    int rc = check(r, offset, bytes, err);
    if (rc != INF_OK || (r->way != INF_WAY_DMABUF && r->way != INF_WAY_PEERMEM))
        return rc;
    const inf_memory_ops *ops = r->memory.ops;
    return backend(ops->flush(ops->arg, r->memory.address + offset, bytes), "flush", err);
}

int inf_region_load(inf_region *r, void *to, uint64_t offset, uint64_t bytes, inf_err *err) {
    int rc = check(r, offset, bytes, err);
    if (rc != INF_OK)
        return rc;
    const inf_memory_ops *ops = r->memory.ops;
    if (r->memory.kind == INF_MEMORY_DEVICE)
        return backend(
            ops->copy_out ? ops->copy_out(ops->arg, to, r->memory.address + offset, bytes) : ENOSYS,
            "read", err);
    memcpy(to, at(r, offset), bytes);
    return INF_OK;
}

int inf_region_store(inf_region *r, uint64_t offset, const void *from, uint64_t bytes,
                     inf_err *err) {
    int rc = check(r, offset, bytes, err);
    if (rc != INF_OK)
        return rc;
    const inf_memory_ops *ops = r->memory.ops;
    if (r->memory.kind == INF_MEMORY_DEVICE)
        return backend(
            ops->copy_in ? ops->copy_in(ops->arg, r->memory.address + offset, from, bytes) : ENOSYS,
            "write", err);
    memcpy(at(r, offset), from, bytes);
    return INF_OK;
}

int inf_region_close(inf_region *region) {
    if (!region)
        return INF_OK;
    if (atomic_load(&region->links) > 0)
        return INF_EFULL;
    if (region->mr)
        region->device->context->lib->dereg_mr(region->mr);
    inf_verbs_device_close(region->device);
    free(region);
    return INF_OK;
}
