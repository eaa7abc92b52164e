/* Memory of a tensor-parallel backend: what is given to it is cut here. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/convert.h"
#include "kernels/tp/tp.h"
#include "runtime/pages.h"

static void drop(tp_backend *b, tp_memory *m) {
    for (int32_t r = 0; m != NULL && r < b->n; r++) {
        if (r == 0 || m->part[r] != m->part[0]) {
            b->ops->free(b->rank[r], m->part[r]);
        }
    }
    free(m);
}

static void tp_free(inf_backend *backend, void *device) {
    tp_backend *b = (tp_backend *)backend;
    if (!inf_tp_busy(b)) {
        drop(b, device);
    }
}

static void *tp_alloc(inf_backend *backend, uint64_t bytes) {
    tp_backend *b = (tp_backend *)backend;
    tp_memory *m = calloc(1, sizeof *m);
    for (int32_t r = 0; m != NULL && r < b->n; r++) {
        m->part[r] = b->ops->alloc(b->rank[r], bytes);
        if (m->part[r] == NULL) {
            drop(b, m);
            return NULL;
        }
    }
    return m;
}

/* ---- the pool ---- */

static void tp_free_pool(inf_backend *backend, void *device, uint64_t bytes) {
    tp_backend *b = (tp_backend *)backend;
    if (device == NULL || inf_tp_busy(b)) {
        return;
    }
    for (int32_t r = 0; r < b->n; r++) {
        b->ops->free_pool(b->rank[r], b->pool.part[r], bytes / (uint64_t)b->n);
    }
    (void)munmap(b->pool.base, bytes);
    b->pool = (tp_pool){.base = NULL};
}

/* A backend has one pool at a time. */
static void *tp_alloc_pool(inf_backend *backend, uint64_t bytes) {
    tp_backend *b = (tp_backend *)backend;
    tp_pool *p = &b->pool;
    if (p->base != NULL || bytes == 0 || bytes % (uint64_t)b->n != 0) {
        return NULL;
    }
    void *base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return NULL;
    }
    p->base = base;
    p->bytes = bytes;
    for (int32_t r = 0; r < b->n; r++) {
        p->part[r] = b->ops->alloc_pool(b->rank[r], bytes / (uint64_t)b->n);
        if (p->part[r] == NULL) {
            tp_free_pool(backend, base, bytes);
            return NULL;
        }
    }
    return base;
}

/* ---- weights ---- */

/* A rank's columns of a row-major matrix of rows of `row` bytes, without gaps; NULL: no memory. */
static void *columns(const void *host, int32_t rank, int32_t n, uint64_t rows, uint64_t row) {
    uint64_t share = row / (uint64_t)n;
    uint8_t *piece = inf_pages_alloc(rows * share);
    for (uint64_t i = 0; piece != NULL && i < rows; i++) {
        memcpy(piece + i * share, (const uint8_t *)host + i * row + (uint64_t)rank * share, share);
    }
    return piece;
}

/* A rank's rows of n. */
static inf_share rows_of(const tp_backend *b, int32_t cut, int32_t n, int32_t rank) {
    int32_t part = n / b->n;
    return cut == INF_CUT_ROWS     ? (inf_share){rank * part, part}
           : cut == INF_CUT_SHARES ? inf_share_of(n, b->n, rank)
                                   : (inf_share){0, n};
}

static void *tp_matrix(inf_backend *backend, int32_t dtype, const void *host, int32_t src_dtype,
                       int32_t n, int32_t k, int32_t cut) {
    tp_backend *b = (tp_backend *)backend;
    uint64_t row = inf_row_bytes(src_dtype, k);
    int32_t cols = cut == INF_CUT_COLUMNS ? k / b->n : k;
    tp_memory *m = calloc(1, sizeof *m);
    for (int32_t r = 0; m != NULL && r < b->n; r++) {
        inf_share rows = rows_of(b, cut, n, r);
        const uint8_t *from = (const uint8_t *)host + (uint64_t)rows.first * row;
        void *piece = NULL;
        if (rows.n == 0) {
            continue;
        }
        if (cut == INF_CUT_COLUMNS) {
            from = piece = columns(host, r, b->n, (uint64_t)n, row);
        }
        m->part[r] = from != NULL ? b->ops->matrix(b->rank[r], dtype, from, src_dtype, rows.n, cols,
                                                   INF_CUT_NONE)
                                  : NULL;
        free(piece);
        if (m->part[r] == NULL) {
            drop(b, m);
            return NULL;
        }
    }
    if (m != NULL) {
        m->cut = cut;
    }
    return m;
}

static void *tp_list(inf_backend *backend, void *const *matrices, int32_t n) {
    tp_backend *b = (tp_backend *)backend;
    tp_memory *m = calloc(1, sizeof *m);
    void **mine = malloc((size_t)n * sizeof *mine);
    int ok = m != NULL && mine != NULL;
    for (int32_t r = 0; ok && r < b->n; r++) {
        for (int32_t i = 0; i < n; i++) {
            mine[i] = tp_part(matrices[i], r);
        }
        ok = (m->part[r] = b->ops->list(b->rank[r], mine, n)) != NULL;
    }
    free(mine);
    if (!ok) {
        drop(b, m);
        m = NULL;
    }
    return m;
}

/* One rank's share of a host buffer, in its memory. */
static void *adopt_copy(tp_backend *b, int32_t rank, const uint8_t *from, uint64_t bytes) {
    void *copy = inf_pages_alloc(bytes);
    return copy != NULL
               ? b->ops->adopt(b->rank[rank], memcpy(copy, from, bytes), bytes, INF_CUT_NONE)
               : NULL;
}

static void *tp_adopt(inf_backend *backend, void *host, uint64_t bytes, int32_t cut) {
    tp_backend *b = (tp_backend *)backend;
    tp_memory *m = calloc(1, sizeof *m);
    uint64_t share = cut == INF_CUT_ROWS ? bytes / (uint64_t)b->n : bytes;
    /* The buffer itself goes to the first rank, the others get copies, and come before it. What
     * nobody writes and all ranks read where it lies is there once. */
    int shared = cut == INF_CUT_NONE && b->rank[0]->host_memory;
    int ok = m != NULL;
    for (int32_t r = b->n - 1; ok && r >= (cut == INF_CUT_ROWS ? 0 : 1) && !shared; r--) {
        const uint8_t *from = (const uint8_t *)host + (cut == INF_CUT_ROWS ? r * share : 0);
        ok = (m->part[r] = adopt_copy(b, r, from, share)) != NULL;
    }
    if (ok && cut != INF_CUT_ROWS) {
        ok = (m->part[0] = b->ops->adopt(b->rank[0], host, bytes, INF_CUT_NONE)) != NULL;
    } else {
        free(host);
    }
    for (int32_t r = 1; ok && shared && r < b->n; r++) {
        m->part[r] = m->part[0];
    }
    if (!ok) {
        drop(b, m);
        m = NULL;
    }
    return m;
}

/* ---- host memory ---- */

static void unpin_ranks(tp_backend *b, int32_t n, void *host) {
    for (int32_t r = 0; r < n; r++) {
        b->ops->host_unpin(b->rank[r], host);
    }
}

/* Every rank reaches its heads in a message's rows where they lie, or none does. The ranks' GPUs
 * share one registration (cuda/pinned.cu). */
static int tp_host_pin(inf_backend *backend, void *host, uint64_t bytes) {
    tp_backend *b = (tp_backend *)backend;
    inf_collective_end end = inf_tp_hold(b);
    int status = end.failed < 0 ? INF_OK : INF_EIO;
    for (int32_t r = 0; r < b->n && status == INF_OK; r++) {
        status = b->ops->host_pin(b->rank[r], host, bytes);
        if (status != INF_OK) {
            unpin_ranks(b, r, host);
        }
    }
    inf_tp_let_go(b);
    return status;
}

/* Of a GPU that will not be idle, pages stay registered when they go: to wait for it would keep
 * whoever closes a link for ever. */
static void tp_host_unpin(inf_backend *backend, void *host) {
    tp_backend *b = (tp_backend *)backend;
    inf_collective_end end = inf_tp_hold(b);
    if (!end.busy) {
        unpin_ranks(b, b->n, host);
    }
    inf_tp_let_go(b);
}

/* What others reach a pool with is left NULL: pool_export, pool_open, pool_close and copy, and
 * nic_export, nic_peermem and nic_flush. A block of the model is n blocks in n memories, in none of
 * which it lies as others see it, so there is nothing to export that a peer could copy into, or a
 * NIC write: blocks travel in messages. Opening a peer's pool would be of use to the copies alone,
 * and those are by the rank, in as many pieces as a block has rows. */
void inf_tp_memory_table(inf_backend_ops *ops, const inf_backend_ops *rank) {
    if (rank->host_pin != NULL) { /* CPU ranks have no use for it */
        ops->host_pin = tp_host_pin;
        ops->host_unpin = tp_host_unpin;
    }
    ops->alloc = tp_alloc;
    ops->free = tp_free;
    ops->alloc_pool = tp_alloc_pool;
    ops->free_pool = tp_free_pool;
    ops->matrix = tp_matrix;
    ops->list = tp_list;
    ops->adopt = tp_adopt;
}
