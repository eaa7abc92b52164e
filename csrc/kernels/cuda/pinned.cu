/* Host memory that the GPU reaches where it lies: links' slots, pinned as dist asks for it.
 *
 * A registration is good for all GPUs of the process (cudaHostRegisterPortable), and CUDA takes the
 * same pages once; but the ranks of an instance all use them, and each may see them at an address
 * of its own. So registrations are the process's and count their users, and a backend has a list of
 * what it may reach.
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

bool lane_sees(const inf_lane *l, int32_t rows, int32_t stride, float **at, float **lse) {
    /* The last row ends with this lane's heads. */
    uint64_t heads = (uint64_t)(rows - 1) * (uint64_t)stride + (uint64_t)l->dims.heads;
    void *o = pinned_find(l->backend, *at, heads * (uint64_t)l->dims.head_dim * sizeof(float));
    void *s =
        o == NULL || lse == NULL ? NULL : pinned_find(l->backend, *lse, heads * sizeof(float));
    if (o == NULL || (lse != NULL && s == NULL)) {
        return false;
    }
    *at = (float *)o;
    if (lse != NULL) {
        *lse = (float *)s;
    }
    return true;
}

void lane_count(inf_lane *l, int32_t rows, bool direct) {
    *(direct ? &l->direct_rows : &l->staged_rows) += (uint64_t)rows;
}

bool lane_direct(inf_lane *l, int32_t rows, int32_t stride, float **at, float **lse) {
    bool direct = lane_sees(l, rows, stride, at, lse);
    lane_count(l, rows, direct);
    return direct;
}

/* ---- registrations, of all backends of the process ---- */

struct registration {
    registration *next;
    void *host;
    uint64_t bytes;
    int32_t users;
};

static struct {
    pthread_mutex_t lock;
    registration *all;
} registered = {PTHREAD_MUTEX_INITIALIZER, NULL};

/* Under the lock; points at NULL where there is none. */
static registration **registration_of(const void *host) {
    registration **at = &registered.all;
    while (*at != NULL && (*at)->host != host) {
        at = &(*at)->next;
    }
    return at;
}

/* Under the lock. */
static int register_pages(void *host, uint64_t bytes) {
    registration *mine = (registration *)malloc(sizeof *mine);
    if (mine == NULL) {
        return INF_ENOMEM;
    }
    cudaError_t status =
        cudaHostRegister(host, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable);
    if (status != cudaSuccess) {
        (void)cudaGetLastError(); /* an answer, not a fault that stays */
        free(mine);
        return status == cudaErrorMemoryAllocation ? INF_ENOMEM : INF_EUNSUPPORTED;
    }
    *mine = {registered.all, host, bytes, 1};
    registered.all = mine;
    return INF_OK;
}

static int use_pages(void *host, uint64_t bytes) {
    int status = INF_OK;
    pthread_mutex_lock(&registered.lock);
    registration *r = *registration_of(host);
    if (r == NULL) {
        status = register_pages(host, bytes);
    } else if (r->bytes == bytes) {
        r->users++;
    } else {
        status = INF_EUNSUPPORTED;
    }
    pthread_mutex_unlock(&registered.lock);
    return status;
}

static void drop_pages(void *host) {
    pthread_mutex_lock(&registered.lock);
    registration **at = registration_of(host), *r = *at;
    if (r != NULL && --r->users == 0) {
        *at = r->next;
        free(r);
        if (cudaHostUnregister(host) != cudaSuccess) {
            (void)cudaGetLastError();
        }
    }
    pthread_mutex_unlock(&registered.lock);
}

/* ---- a backend's list ---- */

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
    if (!b->direct || cudaSetDevice(b->ordinal) != cudaSuccess || pinned_find(b, host, 1) != NULL) {
        return INF_EUNSUPPORTED;
    }
    int result = use_pages(host, bytes);
    if (result != INF_OK) {
        return result;
    }
    result = INF_EUNSUPPORTED;
    if (cudaHostGetDevicePointer(&device, host, 0) == cudaSuccess) {
        s.device = (uint8_t *)device;
        pthread_mutex_lock(&b->pinned.lock);
        result = add(&b->pinned, &s);
        pthread_mutex_unlock(&b->pinned.lock);
    }
    if (result != INF_OK) {
        (void)cudaGetLastError();
        drop_pages(host);
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
    if (found) { /* also if the device is not there any more: the pages are about to go */
        (void)cudaSetDevice(b->ordinal);
        drop_pages(host);
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
