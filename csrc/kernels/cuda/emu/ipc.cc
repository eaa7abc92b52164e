/* Handles of memory for other processes. A handle is the address and who made it. */
#include <string.h>
#include <unistd.h>

#include <map>
#include <mutex>

#include "kernels/cuda/emu/state.h"

namespace {

struct ipc_handle {
    uint64_t magic, process, address;
};

const uint64_t MAGIC = 0x656c646e6168756dull;

std::mutex lock;
std::map<uintptr_t, int> opened; /* how often */

} // namespace

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *memory) {
    uintptr_t begin = 0;
    if (handle == NULL || emu_place_of(memory, 1) != EMU_DEVICE ||
        emu_allocation_of(memory, &begin) == 0) { /* its middle will do, as on a GPU */
        return emu_fail(cudaErrorInvalidValue);
    }
    ipc_handle h = {MAGIC, (uint64_t)getpid(), (uint64_t)begin};
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &h, sizeof h);
    return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void **memory, cudaIpcMemHandle_t handle, unsigned flags) {
    ipc_handle h;
    memcpy(&h, &handle, sizeof h);
    if (memory == NULL || h.magic != MAGIC || flags != cudaIpcMemLazyEnablePeerAccess) {
        return emu_fail(cudaErrorInvalidValue);
    }
    if (h.process != (uint64_t)getpid()) {
        return emu_fail(cudaErrorNotSupported);
    }
    if (emu_place_of((void *)(uintptr_t)h.address, 1) != EMU_DEVICE) {
        return emu_fail(cudaErrorInvalidValue);
    }
    std::lock_guard<std::mutex> guard(lock);
    opened[(uintptr_t)h.address]++;
    *memory = (void *)(uintptr_t)h.address;
    return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void *memory) {
    std::lock_guard<std::mutex> guard(lock);
    auto it = opened.find((uintptr_t)memory);
    if (it == opened.end()) {
        return emu_fail(cudaErrorInvalidValue);
    }
    if (--it->second == 0) {
        opened.erase(it);
    }
    return cudaSuccess;
}
