/* Devices, errors, and what a launch is checked for. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <map>
#include <mutex>

#include "kernels/cuda/emu/state.h"

enum {
    SHARED_WITHOUT_ASKING = 48 << 10,
    SHARED_MOST = 227 << 10,
    SHARED_OF_SM = 228 << 10,
    THREADS_MOST = 1024,
    SMS = 4,
    L2_BYTES = 40 << 20,
};

static thread_local cudaError_t last_error = cudaSuccess;
static thread_local int current_device;

cudaError_t emu_fail(cudaError_t error) {
    last_error = error != cudaSuccess ? error : last_error;
    return error;
}

static std::atomic<cudaError_t> broken{cudaSuccess};

void emu_break(cudaError_t error) { broken = error; }

cudaError_t emu_broken() {
    cudaError_t error = broken;
    return error == cudaSuccess ? error : emu_fail(error);
}

int emu_device() { return current_device; }

enum { DEVICES_MOST = 64 };
static std::atomic<cudaError_t> lost[DEVICES_MOST];

cudaError_t emu_lost_device(int device) {
    return device >= 0 && device < DEVICES_MOST ? lost[device].load() : cudaSuccess;
}

void emu_lose_device(int device, cudaError_t error) {
    if (device >= 0 && device < DEVICES_MOST) {
        lost[device] = error;
    }
}

cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetLastError() {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection",
     "invalid copy direction for memcpy"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
     "part or all of the requested memory range is already mapped"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
     "pointer does not correspond to a registered memory region"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not initiated in this stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
};

const char *cudaGetErrorName(cudaError_t error) {
    for (const auto &e : errors) {
        if (e.error == error) {
            return e.name;
        }
    }
    return "unrecognized error code";
}
const char *cudaGetErrorString(cudaError_t error) {
    for (const auto &e : errors) {
        if (e.error == error) {
            return e.text;
        }
    }
    return "unrecognized error code";
}

/* ---- devices ---- */

static int device_count() {
    const char *s = getenv("INF_EMU_DEVICES");
    return s != NULL ? atoi(s) : 1;
}

static int capability() {
    const char *s = getenv("INF_EMU_CAPABILITY");
    return s != NULL ? atoi(s) : 80;
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = device_count();
    return *count > 0 ? cudaSuccess : emu_fail(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= device_count()) {
        return emu_fail(cudaErrorInvalidDevice);
    }
    current_device = device;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return cudaSuccess;
}
cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
cudaError_t cudaDeviceReset() { return cudaDeviceSynchronize(); }
cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    size_t available, total;
    if (device < 0 || device >= device_count()) {
        return emu_fail(cudaErrorInvalidDevice);
    }
    (void)cudaMemGetInfo(&available, &total);
    memset(p, 0, sizeof *p);
    strcpy(p->name, "emulated");
    p->totalGlobalMem = total;
    p->sharedMemPerBlock = SHARED_WITHOUT_ASKING;
    p->sharedMemPerBlockOptin = SHARED_MOST;
    p->sharedMemPerMultiprocessor = SHARED_OF_SM;
    p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = THREADS_MOST;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->major = capability() / 10;
    p->minor = capability() % 10;
    p->multiProcessorCount = SMS;
    p->canMapHostMemory = p->unifiedAddressing = p->concurrentKernels = 1;
    p->asyncEngineCount = 2;
    p->pciBusID = device + 1;
    p->memoryBusWidth = 64;
    p->l2CacheSize = L2_BYTES;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    cudaError_t status = cudaGetDeviceProperties(&p, device);
    if (status != cudaSuccess) {
        return status;
    }
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = p.maxThreadsPerBlock;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = (int)p.sharedMemPerBlock;
        break;
    case cudaDevAttrGPUDirectRDMASupported:
        *value = emu_gpudirect() & 1;
        break;
    case cudaDevAttrGPUDirectRDMAFlushWritesOptions:
        *value = (emu_gpudirect() & 2) != 0 ? cudaFlushGPUDirectRDMAWritesOptionHost : 0;
        break;
    case cudaDevAttrGPUDirectRDMAWritesOrdering:
        *value = (emu_gpudirect() & 4) != 0 ? cudaGPUDirectRDMAWritesOrderingOwner : 0;
        break;
    case cudaDevAttrWarpSize:
        *value = p.warpSize;
        break;
    case cudaDevAttrMaxRegistersPerBlock:
        *value = p.regsPerBlock;
        break;
    case cudaDevAttrClockRate:
        *value = 1000000;
        break;
    case cudaDevAttrMemoryClockRate:
        *value = 1000000;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        break;
    case cudaDevAttrPciBusId:
        *value = p.pciBusID;
        break;
    case cudaDevAttrPciDeviceId:
        *value = p.pciDeviceID;
        break;
    case cudaDevAttrPciDomainId:
        *value = p.pciDomainID;
        break;
    case cudaDevAttrGlobalMemoryBusWidth:
        *value = p.memoryBusWidth;
        break;
    case cudaDevAttrL2CacheSize:
        *value = p.l2CacheSize;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = p.maxThreadsPerMultiProcessor;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)p.sharedMemPerMultiprocessor;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)p.sharedMemPerBlockOptin;
        break;
    default:
        return emu_fail(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int device) {
    snprintf(id, (size_t)length, "0000:%02x:00.0", (unsigned)device + 1);
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) {
    *can = 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }

/* ---- kernels ---- */

static std::mutex allowed_lock;
static std::map<const void *, int> *allowed_shared() {
    static std::map<const void *, int> *m = new std::map<const void *, int>;
    return m;
}

cudaError_t emu_set_attribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
        return cudaSuccess;
    }
    if (value < 0 || value > SHARED_MOST) {
        return emu_fail(cudaErrorInvalidValue);
    }
    std::lock_guard<std::mutex> guard(allowed_lock);
    (*allowed_shared())[kernel] = value;
    return cudaSuccess;
}

static size_t allowed(const void *kernel) {
    std::lock_guard<std::mutex> guard(allowed_lock);
    auto it = allowed_shared()->find(kernel);
    int bytes = it != allowed_shared()->end() ? it->second : 0;
    return (size_t)(bytes > SHARED_WITHOUT_ASKING ? bytes : SHARED_WITHOUT_ASKING);
}

cudaError_t emu_get_attributes(cudaFuncAttributes *a, const void *kernel) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = THREADS_MOST;
    a->numRegs = 32;
    a->ptxVersion = a->binaryVersion = 80;
    a->maxDynamicSharedSizeBytes = (int)allowed(kernel);
    return cudaSuccess;
}

cudaError_t emu_occupancy(int *blocks, int threads, size_t shared) {
    if (threads < 1 || threads > THREADS_MOST || shared > SHARED_MOST) {
        *blocks = 0;
        return threads < 1 ? emu_fail(cudaErrorInvalidValue) : cudaSuccess;
    }
    int by_threads = 2048 / ((threads + 31) / 32 * 32);
    int by_shared = (int)(SHARED_OF_SM / (shared + 1024));
    int n = by_threads < by_shared ? by_threads : by_shared;
    *blocks = n < 32 ? n : 32;
    return cudaSuccess;
}

void emu_run_step(emu_grid *grid) {
    grid->stream = emu_step_stream;
    grid->step = emu_step;
    emu_run(grid);
}

cudaError_t emu_check_launch(const void *kernel, const emu_grid *g) {
    uint64_t threads = (uint64_t)g->block.x * g->block.y * g->block.z;
    if (kernel == NULL || threads < 1 || threads > THREADS_MOST || g->block.z > 64 ||
        g->grid.x < 1 || g->grid.y < 1 || g->grid.z < 1 || g->grid.x > 2147483647u ||
        g->grid.y > 65535 || g->grid.z > 65535) {
        return emu_fail(cudaErrorInvalidConfiguration);
    }
    if (g->shared > allowed(kernel)) {
        return emu_fail(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
