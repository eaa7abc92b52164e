/* Memory of the CPU backend: device memory is host memory, and a matrix is packed. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/cpu.h"
#include "runtime/pages.h"

void *inf_cpu_alloc(inf_backend *b, uint64_t bytes) {
    (void)b;
    void *memory = inf_pages_alloc(bytes);
    /* Zeroed now, so that a step meets no page faults. */
    return memory != NULL ? memset(memory, 0, bytes) : NULL;
}

void inf_cpu_free(inf_backend *b, void *device) {
    (void)b;
    free(device);
}

void *inf_cpu_alloc_pool(inf_backend *b, uint64_t bytes) {
    (void)b;
    /* Mapped rather than allocated: pages cost memory when a block is first written, and are zero.
     */
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return NULL;
    }
    inf_pages_large(memory, bytes);
    return memory;
}

void inf_cpu_free_pool(inf_backend *b, void *device, uint64_t bytes) {
    (void)b;
    if (device != NULL) {
        (void)munmap(device, bytes);
    }
}

void *inf_cpu_matrix(inf_backend *b, int32_t dtype, const void *host, int32_t src_dtype, int32_t n,
                     int32_t k, int32_t cut) {
    (void)cut; /* one rank */
    const inf_ops *ops = ((cpu_backend *)b)->ops;
    cpu_matrix *m = inf_pages_alloc(sizeof *m + ops->packed_bytes(dtype, n, k));
    if (m != NULL) {
        m->dtype = dtype;
        ops->pack(dtype, host, src_dtype, n, k, m->packed);
    }
    return m;
}

void *inf_cpu_list(inf_backend *b, void *const *matrices, int32_t n) {
    (void)b;
    void *list = malloc((size_t)n * sizeof *matrices);
    return list != NULL ? memcpy(list, matrices, (size_t)n * sizeof *matrices) : NULL;
}

void *inf_cpu_adopt(inf_backend *b, void *host, uint64_t bytes, int32_t cut) {
    (void)b;
    (void)bytes;
    (void)cut;
    return host;
}
