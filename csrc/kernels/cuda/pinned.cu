/* Host memory that the GPU reaches where it lies: links' slots, pinned as dist asks for it.
 *
 * Lanes ask by the address, since that is what an operation gets: what lies within one pinned
 * stretch is used where it lies, anything else goes through the lane's own memory. The list is
 * short (a few stretches per peer) and sorted; peers come and go while lanes look. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/lane.h"

/* The number of stretches that begin at or before host. */
static int32_t count_to(const pinned_list *p, const void *host) {
    int32_t low = 0, high = p->n;
    while (low < high) {
        int32_t mid = low + (high - low) / 2;
        if ((uintptr_t)p->all[mid].host <= (uintptr_t)host) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

void *pinned_find(cuda_backend *b, const void *host, uint64_t bytes) {
    pinned_list *p = &b->pinned;
    uint8_t *found = NULL;
    pthread_mutex_lock(&p->lock);
    int32_t n = count_to(p, host);
    if (n > 0) {
        const pinned_stretch *s = &p->all[n - 1];
        uint64_t at = (uint64_t)((uintptr_t)host - (uintptr_t)s->host);
        found = at <= s->bytes && bytes <= s->bytes - at ? s->device + at : NULL;
    }
    pthread_mutex_unlock(&p->lock);
    return found;
}

bool lane_direct(inf_lane *l, int32_t rows, float **at, float **lse) {
    uint64_t n = (uint64_t)rows;
    void *o = pinned_find(l->backend, *at, n * (uint64_t)l->q_dim * sizeof(float));
    void *s = o == NULL || lse == NULL
                  ? NULL
                  : pinned_find(l->backend, *lse, n * (uint64_t)l->dims.heads * sizeof(float));
    bool direct = o != NULL && (lse == NULL || s != NULL);
    *(direct ? &l->direct_rows : &l->staged_rows) += n;
    if (direct) {
        *at = (float *)o;
        if (lse != NULL) {
            *lse = (float *)s;
        }
    }
    return direct;
}

/* Under the lock. */
static int add(pinned_list *p, const pinned_stretch *s) {
    if (p->n == p->room) {
        int32_t room = p->room > 0 ? 2 * p->room : 16;
        void *grown = realloc(p->all, (size_t)room * sizeof *p->all);
        if (grown == NULL) {
            return INF_ENOMEM;
        }
        p->all = (pinned_stretch *)grown;
        p->room = room;
    }
    int32_t at = count_to(p, s->host);
    memmove(p->all + at + 1, p->all + at, (size_t)(p->n - at) * sizeof *p->all);
    p->all[at] = *s;
    p->n++;
    return INF_OK;
}

int inf_cuda_host_pin(inf_backend *backend, void *host, uint64_t bytes) {
    cuda_backend *b = (cuda_backend *)backend;
    pinned_stretch s = {(uint8_t *)host, NULL, bytes};
    void *device = NULL;
    if (!b->direct || cudaSetDevice(b->ordinal) != cudaSuccess) {
        return INF_EUNSUPPORTED;
    }
    cudaError_t status =
        cudaHostRegister(host, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable);
    if (status != cudaSuccess) {
        (void)cudaGetLastError(); /* an answer, not a fault that stays */
        return status == cudaErrorMemoryAllocation ? INF_ENOMEM : INF_EUNSUPPORTED;
    }
    int result = INF_EUNSUPPORTED;
    if (cudaHostGetDevicePointer(&device, host, 0) == cudaSuccess) {
        s.device = (uint8_t *)device;
        pthread_mutex_lock(&b->pinned.lock);
        result = add(&b->pinned, &s);
        pthread_mutex_unlock(&b->pinned.lock);
    }
    if (result != INF_OK) {
        (void)cudaGetLastError();
        (void)cudaHostUnregister(host);
    }
    return result;
}

void inf_cuda_host_unpin(inf_backend *backend, void *host) {
    cuda_backend *b = (cuda_backend *)backend;
    pinned_list *p = &b->pinned;
    bool found = false;
    pthread_mutex_lock(&p->lock);
    int32_t n = count_to(p, host);
    if (n > 0 && p->all[n - 1].host == host) {
        found = true;
        memmove(p->all + n - 1, p->all + n, (size_t)(p->n - n) * sizeof *p->all);
        p->n--;
    }
    pthread_mutex_unlock(&p->lock);
    if (found && cudaSetDevice(b->ordinal) == cudaSuccess &&
        cudaHostUnregister(host) != cudaSuccess) {
        (void)cudaGetLastError();
    }
}

void pinned_open(cuda_backend *b) { pthread_mutex_init(&b->pinned.lock, NULL); }

void pinned_close(cuda_backend *b) {
    while (b->pinned.n > 0) {
        inf_cuda_host_unpin(&b->base, b->pinned.all[b->pinned.n - 1].host);
    }
    free(b->pinned.all);
    pthread_mutex_destroy(&b->pinned.lock);
}
