/* GPUDirect, as far as a NIC is not needed for it, and functions of the driver. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/cuda/emu/state.h"

int emu_gpudirect(void) {
    const char *s = getenv("INF_EMU_GPUDIRECT");
    return s != NULL ? atoi(s) : 0;
}

/* The driver's: whole pages of one allocation, as a file. */
static int export_range(void *handle, unsigned long long at, size_t bytes, int type,
                        unsigned long long flags) {
    const int invalid = 1, unsupported = 801;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (type != 1 || flags != 0 || at % page != 0 || bytes == 0 || bytes % page != 0 ||
        emu_place_of((void *)(uintptr_t)at, bytes) != EMU_DEVICE) {
        return invalid;
    }
    if ((emu_gpudirect() & 1) == 0) {
        return unsupported;
    }
    *(int *)handle = memfd_create("dma-buf", MFD_CLOEXEC);
    return *(int *)handle >= 0 ? 0 : unsupported;
}

/* The driver's, which takes an address within an allocation of device memory. */
static int address_range(unsigned long long *begin, size_t *bytes, unsigned long long at) {
    const int invalid = 1;
    uintptr_t first = 0;
    void *p = (void *)(uintptr_t)at;
    size_t n = emu_place_of(p, 1) == EMU_DEVICE ? emu_allocation_of(p, &first) : 0;
    if (n == 0) {
        return invalid;
    }
    *begin = first;
    *bytes = n;
    return 0;
}

cudaError_t cudaGetDriverEntryPoint(const char *name, void **out, unsigned long long flags) {
    if (name == NULL || out == NULL || flags != cudaEnableDefault) {
        return emu_fail(cudaErrorInvalidValue);
    }
    *out = strcmp(name, "cuMemGetHandleForAddressRange") == 0 ? (void *)export_range
           : strcmp(name, "cuMemGetAddressRange") == 0        ? (void *)address_range
                                                              : NULL;
    return *out != NULL ? cudaSuccess : emu_fail(cudaErrorNotSupported);
}

cudaError_t cudaDeviceFlushGPUDirectRDMAWrites(cudaFlushGPUDirectRDMAWritesTarget target,
                                               cudaFlushGPUDirectRDMAWritesScope scope) {
    if (target != cudaFlushGPUDirectRDMAWritesTargetCurrentDevice ||
        scope != cudaFlushGPUDirectRDMAWritesToOwner) {
        return emu_fail(cudaErrorInvalidValue);
    }
    return (emu_gpudirect() & 2) != 0 ? cudaSuccess : emu_fail(cudaErrorNotSupported);
}
