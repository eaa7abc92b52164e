/* GPUDirect: what a NIC needs to write into the pool. transport/verbs/region.c tries the ways and
 * says which it took; here is what this GPU and its driver can do.
 *
 *   dma-buf       the driver exports whole pages of the pool as a file descriptor, which the RDMA
 *                 core imports: CUDA 11.7 and the open kernel module, or 12.x with either
 *   peer memory   the module nvidia-peermem (once nv_peer_mem) lets the RDMA core pin GPU addresses
 *
 * A GPU consumes what a NIC wrote in order where it says so (Hopper does); others are flushed
 * before the blocks are read, and who can neither is not written to. */
#include <errno.h>
#include <unistd.h>

#include "kernels/cuda/lane.h"

/* cuMemGetHandleForAddressRange */
typedef int (*export_range)(void *handle, unsigned long long at, size_t bytes, int type,
                            unsigned long long flags);

enum { DMA_BUF_FD = 1 };

void *driver_function(const char *name) {
    void *found = NULL;
#if CUDART_VERSION >= 12050 && !defined(INF_EMU)
    cudaDriverEntryPointQueryResult status;
    cudaError_t error =
        cudaGetDriverEntryPointByVersion(name, &found, 11070, cudaEnableDefault, &status);
    found = status == cudaDriverEntryPointSuccess ? found : NULL;
#elif CUDART_VERSION >= 12000 && !defined(INF_EMU)
    cudaDriverEntryPointQueryResult status;
    cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &status);
    found = status == cudaDriverEntryPointSuccess ? found : NULL;
#else
    cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault);
#endif
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        found = NULL;
    }
    return found;
}

/* An attribute of the backend's GPU; 0 where the driver does not know it. */
static int attribute(const cuda_backend *b, cudaDeviceAttr which) {
    int value = 0;
    if (cudaDeviceGetAttribute(&value, which, b->ordinal) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    return value;
}

int inf_cuda_nic_export(inf_backend *backend, void *device, uint64_t bytes, int *fd,
                        uint64_t *offset) {
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), at = (uint64_t)(uintptr_t)device;
    uint64_t whole = (bytes + page - 1) / page * page; /* alloc_pool has rounded up as well */
    export_range get = (export_range)driver_function("cuMemGetHandleForAddressRange");
    if (get == NULL) {
        return ENOSYS;
    }
    if (at % page != 0 || cudaSetDevice(((cuda_backend *)backend)->ordinal) != cudaSuccess) {
        return EINVAL;
    }
    *fd = -1;
    *offset = 0;
    /* The driver's status says no more than that it will not. */
    return get(fd, at, (size_t)whole, DMA_BUF_FD, 0) == 0 && *fd >= 0 ? 0 : EOPNOTSUPP;
}

int inf_cuda_nic_peermem(inf_backend *backend) {
    static const char *const modules[] = {"/sys/module/nvidia_peermem", "/sys/module/nv_peer_mem"};
    if (attribute((cuda_backend *)backend, cudaDevAttrGPUDirectRDMASupported) == 0) {
        return EOPNOTSUPP;
    }
    for (const char *module : modules) {
        if (access(module, F_OK) == 0) {
            return 0;
        }
    }
    return ENOENT;
}

int inf_cuda_nic_flush(inf_backend *backend) {
    cuda_backend *b = (cuda_backend *)backend;
    if (attribute(b, cudaDevAttrGPUDirectRDMAWritesOrdering) >=
        cudaGPUDirectRDMAWritesOrderingOwner) {
        return 0;
    }
    if ((attribute(b, cudaDevAttrGPUDirectRDMAFlushWritesOptions) &
         cudaFlushGPUDirectRDMAWritesOptionHost) == 0) {
        return EOPNOTSUPP;
    }
    if (cudaSetDevice(b->ordinal) != cudaSuccess ||
        cudaDeviceFlushGPUDirectRDMAWrites(cudaFlushGPUDirectRDMAWritesTargetCurrentDevice,
                                           cudaFlushGPUDirectRDMAWritesToOwner) != cudaSuccess) {
        (void)cudaGetLastError();
        return EIO;
    }
    return 0;
}
