/* Pools that other instances copy into: CUDA IPC between processes, the pointer within one.
 *
 * A process opens a pool of its own by its address, since CUDA opens no handle in the process that
 * made it. Such users are counted: a pool is freed when the last has closed it. Users in other
 * processes are not known here. They close when they see the link's end, which comes before the
 * pool's; the driver counts mappings, so that the memory stays until then, though CUDA's manual
 * promises nothing for a pool that is freed first.
 *
 * How large an opened pool is, is this end's to know: of a pool of the process from its record, of
 * another's from the driver, which has mapped it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "kernels/cuda/lane.h"

static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(((inf_pool_key *)0)->handle), "kept whole");

/* A user that does not close in this time has lost its thread: the pool is left to it. */
enum { USERS_SECONDS = 30 };

struct shared_pool {
    shared_pool *next;
    const void *pool;
    uint64_t bytes;
    uint32_t users;
    bool ending;
};

/* cuMemGetAddressRange: the allocation that an address is in. */
typedef int (*address_range)(unsigned long long *begin, size_t *bytes, unsigned long long at);

static struct {
    pthread_mutex_t lock;
    pthread_cond_t closed;
    shared_pool *all;
    uint64_t process; /* drawn: process ids come again */
} shared = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, NULL, 0};

/* Under the lock. */
static shared_pool **find(const void *pool) {
    shared_pool **at = &shared.all;
    while (*at != NULL && (*at)->pool != pool) {
        at = &(*at)->next;
    }
    return at;
}

static uint64_t this_process() {
    while (shared.process == 0) {
        if (getrandom(&shared.process, sizeof shared.process, 0) != sizeof shared.process) {
            shared.process = (uint64_t)getpid() << 32 | (uint32_t)time(NULL);
        }
    }
    return shared.process;
}

/* A reason that outlives the call, for the calling thread. */
static const char *reason(const char *what, cudaError_t status) {
    static thread_local char why[160];
    (void)cudaGetLastError(); /* an answer, not a fault that stays */
    snprintf(why, sizeof why, "cannot %s: %s", what, cudaGetErrorString(status));
    return why;
}

bool shared_begin(const void *pool, uint64_t bytes) {
    shared_pool *s = (shared_pool *)calloc(1, sizeof *s);
    if (s == NULL) {
        return false;
    }
    s->pool = pool;
    s->bytes = bytes;
    pthread_mutex_lock(&shared.lock);
    s->next = shared.all;
    shared.all = s;
    pthread_mutex_unlock(&shared.lock);
    return true;
}

int inf_cuda_pool_export(inf_backend *b, void *pool, inf_pool_key *out, const char **why) {
    pthread_mutex_lock(&shared.lock);
    bool known = *find(pool) != NULL;
    uint64_t process = this_process();
    pthread_mutex_unlock(&shared.lock);
    if (!known) { /* CUDA has a handle for the middle of an allocation, too */
        *why = "cannot export the pool to other processes: no pool begins there";
        return INF_EINVAL;
    }
    cudaIpcMemHandle_t handle;
    cudaError_t status = cudaSetDevice(((cuda_backend *)b)->ordinal);
    memset(&handle, 0, sizeof handle);
    status = status != cudaSuccess ? status : cudaIpcGetMemHandle(&handle, pool);
    if (status != cudaSuccess) {
        *why = reason("export the pool to other processes", status);
        return INF_EUNSUPPORTED;
    }
    memset(out, 0, sizeof *out);
    memcpy(out->handle, &handle, sizeof handle);
    out->address = (uint64_t)(uintptr_t)pool;
    out->process = process;
    return INF_OK;
}

/* A pool of this process; NULL: there is none, or it is about to go. */
static uint8_t *open_own(const inf_pool_key *key, uint64_t *bytes) {
    uint8_t *pool = (uint8_t *)(uintptr_t)key->address;
    shared_pool *s = *find(pool);
    if (s == NULL || s->ending) {
        return NULL;
    }
    s->users++;
    *bytes = s->bytes;
    return pool;
}

/* What was mapped behind an opened pool's beginning; 0: the driver does not say. */
static uint64_t mapped_bytes(const void *pool) {
    address_range range = (address_range)driver_function("cuMemGetAddressRange");
    unsigned long long begin = 0, at = (unsigned long long)(uintptr_t)pool;
    size_t bytes = 0;
    if (range == NULL || range(&begin, &bytes, at) != 0 || at < begin || at - begin > bytes) {
        return 0;
    }
    return bytes - (at - begin);
}

uint8_t *inf_cuda_pool_open(inf_backend *b, const inf_pool_key *key, uint64_t *bytes,
                            const char **why) {
    *bytes = 0;
    pthread_mutex_lock(&shared.lock);
    bool own = key->process == this_process();
    uint8_t *pool = own ? open_own(key, bytes) : NULL;
    pthread_mutex_unlock(&shared.lock);
    *why = "the pool is over";
    if (own) {
        return pool;
    }
    void *opened = NULL;
    cudaIpcMemHandle_t handle;
    memcpy(&handle, key->handle, sizeof handle);
    cudaError_t status = cudaSetDevice(((cuda_backend *)b)->ordinal);
    status = status != cudaSuccess
                 ? status
                 : cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess);
    if (status != cudaSuccess) {
        *why = reason("open the peer's pool", status);
        return NULL;
    }
    *bytes = mapped_bytes(opened);
    if (*bytes == 0) {
        *why = "cannot learn the size of the peer's pool from the driver";
        inf_cuda_pool_close(b, key, (uint8_t *)opened);
        return NULL;
    }
    return (uint8_t *)opened;
}

void inf_cuda_pool_close(inf_backend *b, const inf_pool_key *key, uint8_t *pool) {
    pthread_mutex_lock(&shared.lock);
    bool own = key->process == this_process();
    shared_pool *s = own ? *find(pool) : NULL;
    if (s != NULL) {
        s->users--;
        pthread_cond_broadcast(&shared.closed);
    }
    pthread_mutex_unlock(&shared.lock);
    if (!own && cudaSetDevice(((cuda_backend *)b)->ordinal) == cudaSuccess &&
        cudaIpcCloseMemHandle(pool) != cudaSuccess) {
        (void)cudaGetLastError();
    }
}

bool shared_end(const void *pool) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += USERS_SECONDS;
    pthread_mutex_lock(&shared.lock);
    shared_pool **at = find(pool), *s = *at;
    int late = 0;
    if (s != NULL) {
        s->ending = true;
        while (s->users > 0 && late == 0) {
            late = pthread_cond_timedwait(&shared.closed, &shared.lock, &until);
        }
        if (s->users == 0) {
            *find(pool) = s->next;
            free(s);
        }
    }
    pthread_mutex_unlock(&shared.lock);
    return late == 0;
}
