/* Memory: allocations, and copies between them. A copy's direction must be what its pointers are,
 * and both ends must lie within what was allocated. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <mutex>

#include "kernels/cuda/emu/race.h"
#include "kernels/cuda/emu/state.h"

namespace {

struct allocation {
    size_t bytes;
    emu_place place;
    bool registered; /* the caller's own memory */
    int device;
};

struct memory_map {
    std::mutex lock;
    std::map<uintptr_t, allocation> all;
    size_t used = 0;
};

/* Never destroyed: threads may outlive main's end. */
memory_map *memory() {
    static memory_map *m = new memory_map;
    return m;
}

size_t total_bytes() {
    const char *s = getenv("INF_EMU_MEMORY"); /* bytes of a device */
    return s != NULL ? (size_t)strtoull(s, NULL, 10) : (size_t)8 << 30;
}

cudaError_t allocate(void **out, size_t bytes, emu_place place) {
    if (out == NULL) {
        return emu_fail(cudaErrorInvalidValue);
    }
    *out = NULL;
    if (emu_broken() != cudaSuccess) {
        return emu_broken();
    }
    if (emu_is_forbidden()) {
        return emu_fail(cudaErrorStreamCaptureUnsupported);
    }
    if (bytes == 0) {
        return cudaSuccess;
    }
    memory_map *m = memory();
    std::lock_guard<std::mutex> guard(m->lock);
    void *p = NULL;
    bool fits = place != EMU_DEVICE || bytes <= total_bytes() - m->used;
    if (!fits ||
        posix_memalign(&p, place == EMU_DEVICE && bytes < 65536 ? 256 : 4096, bytes) != 0) {
        return emu_fail(cudaErrorMemoryAllocation);
    }
    memset(p, 0xcb, bytes);
    m->all[(uintptr_t)p] = {bytes, place, false, emu_device()};
    m->used += place == EMU_DEVICE ? bytes : 0;
    *out = p;
    return cudaSuccess;
}

cudaError_t release(void *p, emu_place place) {
    if (emu_is_forbidden()) {
        return emu_fail(cudaErrorStreamCaptureUnsupported);
    }
    if (p == NULL) {
        return cudaSuccess;
    }
    emu_finish_all(true);
    memory_map *m = memory();
    std::lock_guard<std::mutex> guard(m->lock);
    auto it = m->all.find((uintptr_t)p);
    if (it == m->all.end() || it->second.place != place || it->second.registered) {
        return emu_fail(cudaErrorInvalidValue);
    }
    m->used -= place == EMU_DEVICE ? it->second.bytes : 0;
    m->all.erase(it);
    emu_race_forget(p);
    free(p);
    return cudaSuccess;
}

struct copy_form {
    uint8_t *to;
    const uint8_t *from;
    size_t to_pitch, from_pitch, width, height;

    size_t to_bytes() const { return height > 0 ? (height - 1) * to_pitch + width : 0; }
    size_t from_bytes() const { return height > 0 ? (height - 1) * from_pitch + width : 0; }
    void run() const {
        for (size_t i = 0; i < height && width > 0; i++) {
            memmove(to + i * to_pitch, from + i * from_pitch, width);
        }
    }
};

bool fits(emu_place place, bool wants_device, bool any) {
    return place != EMU_BEYOND && (any || (place == EMU_DEVICE) == wants_device);
}

/* Whether the copy may be done; says why not. */
cudaError_t check_copy(const copy_form &c, cudaMemcpyKind kind, emu_place *to, emu_place *from) {
    if (c.width > c.to_pitch || c.width > c.from_pitch || (unsigned)kind > cudaMemcpyDefault) {
        return emu_fail(cudaErrorInvalidValue);
    }
    *to = emu_place_of(c.to, c.to_bytes());
    *from = emu_place_of(c.from, c.from_bytes());
    bool any = kind == cudaMemcpyDefault;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (!fits(*to, to_device, any) || !fits(*from, from_device, any)) {
        static const char *const names[] = {"pageable host", "pinned host", "device",
                                            "memory that ends too early:"};
        fprintf(stderr, "emu: a copy of kind %d from %s %p to %s %p, %zu x %zu bytes\n", (int)kind,
                names[*from], (const void *)c.from, names[*to], (const void *)c.to, c.height,
                c.width);
        return emu_fail(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

/* Pageable memory is read before the call returns, and written before it returns. */
cudaError_t copy_async(const copy_form &c, cudaMemcpyKind kind, cudaStream_t stream) {
    emu_place to, from;
    cudaError_t status = check_copy(c, kind, &to, &from);
    if (status != cudaSuccess || c.width == 0 || c.height == 0) {
        return status;
    }
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    (void)cudaStreamIsCapturing(stream, &capture);
    if (capture != cudaStreamCaptureStatusNone || (from != EMU_PAGEABLE && to != EMU_PAGEABLE)) {
        return emu_enqueue(stream, [c] { c.run(); });
    }
    if (to == EMU_PAGEABLE) {
        status = emu_enqueue(stream, [c] { c.run(); });
        return status != cudaSuccess ? status : cudaStreamSynchronize(stream);
    }
    auto bytes = std::make_shared<std::vector<uint8_t>>(c.from, c.from + c.from_bytes());
    return emu_enqueue(stream, [c, bytes] {
        copy_form mine = c;
        mine.from = bytes->data();
        mine.run();
    });
}

cudaError_t copy_now(const copy_form &c, cudaMemcpyKind kind) {
    emu_place to, from;
    if (emu_is_forbidden()) {
        return emu_fail(cudaErrorStreamCaptureUnsupported);
    }
    cudaError_t status = check_copy(c, kind, &to, &from);
    if (status == cudaSuccess) {
        status = emu_enqueue(NULL, [c] { c.run(); });
    }
    return status != cudaSuccess ? status : cudaStreamSynchronize(NULL);
}

copy_form flat(void *to, const void *from, size_t bytes) {
    return {(uint8_t *)to, (const uint8_t *)from, bytes, bytes, bytes, 1};
}

} // namespace

emu_place emu_place_of(const void *p, size_t bytes) {
    memory_map *m = memory();
    std::lock_guard<std::mutex> guard(m->lock);
    auto it = m->all.upper_bound((uintptr_t)p);
    if (it == m->all.begin()) {
        return EMU_PAGEABLE;
    }
    --it;
    uintptr_t offset = (uintptr_t)p - it->first;
    if (offset >= it->second.bytes) {
        return EMU_PAGEABLE;
    }
    return bytes <= it->second.bytes - offset ? it->second.place : EMU_BEYOND;
}

size_t emu_allocation_of(const void *p, uintptr_t *begin) {
    memory_map *m = memory();
    std::lock_guard<std::mutex> guard(m->lock);
    auto it = m->all.upper_bound((uintptr_t)p);
    if (it == m->all.begin()) {
        return 0;
    }
    --it;
    *begin = it->first;
    return (uintptr_t)p - it->first < it->second.bytes ? it->second.bytes : 0;
}

cudaError_t cudaMalloc(void **out, size_t bytes) { return allocate(out, bytes, EMU_DEVICE); }
cudaError_t cudaMallocAsync(void **out, size_t bytes, cudaStream_t) {
    return allocate(out, bytes, EMU_DEVICE);
}
cudaError_t cudaMallocHost(void **out, size_t bytes) { return allocate(out, bytes, EMU_PINNED); }
cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned) {
    return allocate(out, bytes, EMU_PINNED);
}
cudaError_t cudaFree(void *p) { return release(p, EMU_DEVICE); }
cudaError_t cudaFreeAsync(void *p, cudaStream_t) { return release(p, EMU_DEVICE); }
cudaError_t cudaFreeHost(void *p) { return release(p, EMU_PINNED); }

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned) {
    memory_map *m = memory();
    if (p == NULL || bytes == 0) {
        return emu_fail(cudaErrorInvalidValue);
    }
    if (emu_place_of(p, bytes) != EMU_PAGEABLE) {
        return emu_fail(cudaErrorHostMemoryAlreadyRegistered);
    }
    std::lock_guard<std::mutex> guard(m->lock);
    m->all[(uintptr_t)p] = {bytes, EMU_PINNED, true, emu_device()};
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *p) {
    emu_finish_all(true);
    memory_map *m = memory();
    std::lock_guard<std::mutex> guard(m->lock);
    auto it = m->all.find((uintptr_t)p);
    if (it == m->all.end() || !it->second.registered) {
        return emu_fail(cudaErrorHostMemoryNotRegistered);
    }
    m->all.erase(it);
    emu_race_forget(p);
    return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned) {
    if (emu_place_of(host, 1) != EMU_PINNED) {
        return emu_fail(cudaErrorInvalidValue);
    }
    *device = host;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p) {
    emu_place place = emu_place_of(p, 1);
    a->type = place == EMU_DEVICE   ? cudaMemoryTypeDevice
              : place == EMU_PINNED ? cudaMemoryTypeHost
                                    : cudaMemoryTypeUnregistered;
    a->device = 0;
    a->devicePointer = place != EMU_PAGEABLE ? (void *)p : NULL;
    a->hostPointer = place != EMU_DEVICE ? (void *)p : NULL;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    if (emu_broken() != cudaSuccess) {
        return emu_broken();
    }
    memory_map *m = memory();
    std::lock_guard<std::mutex> guard(m->lock);
    *total = total_bytes();
    *available = *total - m->used;
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    return copy_now(flat(to, from, bytes), kind);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return copy_async(flat(to, from, bytes), kind, stream);
}
cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                         size_t width, size_t height, cudaMemcpyKind kind) {
    return copy_now({(uint8_t *)to, (const uint8_t *)from, to_pitch, from_pitch, width, height},
                    kind);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
    return copy_async({(uint8_t *)to, (const uint8_t *)from, to_pitch, from_pitch, width, height},
                      kind, stream);
}
cudaError_t cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t bytes,
                                cudaStream_t stream) {
    return copy_async(flat(to, from, bytes), cudaMemcpyDeviceToDevice, stream);
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream) {
    emu_place place = emu_place_of(p, bytes);
    if (bytes == 0) {
        return cudaSuccess;
    }
    if (place != EMU_DEVICE && place != EMU_PINNED) {
        return emu_fail(cudaErrorInvalidValue);
    }
    return emu_enqueue(stream, [=] { memset(p, value, bytes); });
}
cudaError_t cudaMemset(void *p, int value, size_t bytes) {
    if (emu_is_forbidden()) {
        return emu_fail(cudaErrorStreamCaptureUnsupported);
    }
    return cudaMemsetAsync(p, value, bytes, NULL);
}
