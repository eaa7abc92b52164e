/* What a device does for the forward pass (model/) and for DistAttention (dist/): where memory
 * lies, and the operations of a step in the order of a lane. The order of the layers is written
 * once, in model/forward.c, over this table; kernels/cpu fills it from inf_ops, kernels/cuda from
 * its launchers.
 *
 * A lane is an order of work: on the CPU a team of threads, and what is asked is done on return; on
 * a GPU a stream, and it is done after sync. One thread uses a lane at a time; lanes run beside
 * each other. The step has one, the thread that answers other instances' queries one, each thread
 * that moves blocks one.
 *
 * Memory: "device" pointers come from alloc, matrix or adopt and are only handed back; "host"
 * memory is ordinary. Activations are `act` (an INF_DTYPE_*); the residual stream, partials and
 * logits are f32.
 *
 * Failure: operations return nothing. The first fault of a lane stays with it, what follows may do
 * nothing, and sync says so. Such a lane can only be closed, after which nothing that was asked of
 * it is under way. Another one may be as good as the first; lane_open says INF_EIO if none can be,
 * because the device itself has failed. */
#ifndef INF_BACKEND_H
#define INF_BACKEND_H

#include "infinite/device.h"
#include "kernels/kernels.h"

typedef struct inf_backend inf_backend;
typedef struct inf_backend_ops inf_backend_ops;
typedef struct inf_lane inf_lane;
typedef struct inf_collective inf_collective;

/* Ranks that one backend is made of, at most: the GPUs of one host. */
enum { INF_MAX_RANKS = 8 };

/* A step may be computed in two halves of its rows, the first before the second in every layer.
 * INF_WHOLE is all of them. */
enum { INF_HALVES = 2, INF_WHOLE = -1 };

struct inf_backend {
    const inf_backend_ops *ops;
    const char *name; /* "avx512", "cuda", ... */
    int32_t act;
    int32_t act_bytes;
    int32_t logit_rows; /* rows of logits that are worth computing at once; no product has more */
    /* Rows that are worth computing at once: with more of them a row takes hardly less time. A step
     * of twice as many, of which partials come from others, is computed in halves. 0: none is. */
    int32_t half_rows;
    /* 1: a matrix is the row-major [n, k] that came, so that the embedding can serve as the LM head
     */
    int32_t plain_matrix;
    int32_t host_memory; /* 1: device memory is host memory, and read where it lies */
    int32_t cpus;        /* 1: it computes with the process's own threads */
    /* For how long threads that take part in steps look for what comes next before they sleep: a
     * sleep and a wake-up cost tens of microseconds, of which a layer or a step would have several.
     * 0 where others want the CPUs. Set by who opens the backend, before lanes are. */
    int64_t awake_ns;
    /* 1, or the ranks of a tensor-parallel backend (kernels/tp). It does each operation on all of
     * them: shapes of operations are one rank's, with heads, kv heads and intermediate divided by
     * ranks, and lanes, the pool and what is exchanged with others have those of the model. */
    int32_t ranks;
};

/* How a backend of several ranks cuts what it is given; one rank takes all of it. */
enum {
    INF_CUT_NONE = 0,    /* every rank has the whole */
    INF_CUT_ROWS = 1,    /* rank r has the r-th of `ranks` equal parts, one behind the other */
    INF_CUT_COLUMNS = 2, /* rank r has the r-th part of every row */
    INF_CUT_SHARES = 3,  /* rank r has the rows of its inf_share_of */
};

/* A rank's share of n rows that need not be a multiple of the ranks, as a vocabulary: the n-th
 * part, rounded up to whole units; where they run out a share is smaller, and those behind it are
 * empty. A unit is what the products take at once, and where the shares of an embedding that serves
 * as the LM head begin, it is aligned. */
enum { INF_SHARE_UNIT = 16 };
typedef struct inf_share {
    int32_t first, n;
} inf_share;

static inline inf_share inf_share_of(int32_t n, int32_t ranks, int32_t rank) {
    int32_t units = (n + INF_SHARE_UNIT - 1) / INF_SHARE_UNIT;
    int64_t most = (int64_t)((units + ranks - 1) / ranks) * INF_SHARE_UNIT;
    int64_t first = most * rank < n ? most * rank : n;
    inf_share share = {(int32_t)first, (int32_t)(n - first < most ? n - first : most)};
    return share;
}

/* What a lane is used for: the functions below say which they belong to; copies and sync are for
 * all. */
enum { INF_LANE_STEP = 1, INF_LANE_ANSWER = 2, INF_LANE_COPY = 3 };

typedef struct inf_lane_config {
    int32_t kind;
    const inf_device_config *device; /* read during open only, as are the arrays */
    inf_kv_shape kv;
    uint8_t *pool;          /* device; [num_blocks] blocks */
    const int32_t *windows; /* [layers] */
    const float *inv_freq;  /* [ropes, rotary_dim / 2] */
    float scale;            /* of q.k */
    inf_pool *threads;      /* CPU: the lane's team, borrowed; NULL: the caller alone */
    int32_t max_rows;       /* query rows of one attend or answer */
    int32_t max_segments;   /* segments (spans) of one attend or answer */
    int32_t max_blocks;     /* entries of their block lists together */
} inf_lane_config;

/* What opens a pool. It travels in shared memory of one host. */
typedef struct inf_pool_key {
    uint64_t process; /* drawn by the process that has the pool */
    uint64_t address; /* in that process */
    uint8_t handle[64];
} inf_pool_key;

/* y[rows, n] = x[rows, k] w^T (+ bias). x of act; y of act, or f32 when y_f32, which only logits
 * are. They have no bias, and w is of INF_CUT_SHARES, or the embedding of a plain_matrix backend:
 * of several ranks each makes those of its share of n, and the first one gets all. */
typedef struct inf_product {
    const void *x;
    const void *w; /* of inf_backend_ops.matrix, [n, k] */
    const void *bias;
    void *y;
    int32_t rows, n, k;
    int32_t y_f32;
    float softcap; /* of logits: y = softcap tanh(y / softcap); 0: none */
} inf_product;

/* The MLP of a layer with experts (inf_device_config.experts): y[rows, hidden], of act, from x of
 * the same shape, which may be y. Of several ranks each has its part of every expert's inner
 * numbers, and all make the same choice of experts. */
typedef struct inf_experts {
    const void *x;
    /* Of matrix, INF_CUT_NONE, F32: [experts, hidden], and where there is a shared expert one more
     * row, SHARED_ROUTER. */
    const void *router;
    const void *gate_up, *down;               /* of list: [experts] */
    const void *shared_gate_up, *shared_down; /* NULL: there is none */
    void *y;
    int32_t rows;
} inf_experts;

/* A layer's tensors for heads. */
typedef struct inf_heads {
    const void *qkv;              /* [rows, (heads + 2 kv_heads) * head_dim] of act */
    const float *q_norm, *k_norm; /* as inf_device_config.model_flags says, or NULL */
    void *q;                      /* [rows, heads, head_dim] of act, out */
    int32_t layer;
} inf_heads;

/* What sums and gathers over ranks work on; everything is borrowed until they are closed. */
typedef struct inf_collective_config {
    int32_t ranks;
    inf_backend *const *backends; /* [ranks], of one kind */
    inf_lane *const *lanes;       /* [ranks], of steps */
    inf_pool *threads;            /* as the lanes have it */
    int32_t max_rows, cols;       /* of a gather: rows at most, and the columns of them all */
} inf_collective_config;

/* How the ranks came out of a wait. */
typedef struct inf_collective_end {
    int32_t failed; /* the rank that failed first; -1: none did; `ranks`: it is no one's own */
    int32_t busy;   /* 1: one failed, and what another does came to no end since: it may write to
                     * the memory it was given, and whoever waits for it waits for ever */
} inf_collective_end;

/* One caller asks for all ranks at once, in the order of their lanes' other work. */
typedef struct inf_collective_ops {
    /* y[r][i] = sum over ranks of y[rank][i], for count numbers of act in rank r's memory. Every
     * rank gets the same bits. A lane that cannot go on takes the others with it, so that none
     * waits for it for ever. */
    void (*sum)(inf_collective *, void *const *y, uint64_t count);
    /* whole[rows, cols], in rank 0's memory, from the ranks' columns: part[r] [rows, n], in rank
     * r's memory, has those of r's inf_share_of(cols, ranks, r). f32. Fails as a sum does. */
    void (*gather)(inf_collective *, float *const *part, float *whole, int32_t rows);
    /* Before the lanes are synchronised one after the other, and before anything that waits for
     * the device unconditionally: waits until all are done. If one fails or a deadline passes, it
     * ends what the others wait for. From any thread. patient: asking all the time would be in the
     * way of others, and some tens of microseconds do not matter. */
    inf_collective_end (*wait)(inf_collective *, int patient);
    void (*close)(inf_collective *); /* before the lanes; safe on NULL */
} inf_collective_ops;

struct inf_collective {
    const inf_collective_ops *ops;
};

/* The format of the matrices that product takes. */
/* The LM head keeps more bits than matrices in I4: it is read once, and its rounding is in every
 * logit. */
static inline int32_t inf_head_dtype(const inf_device_config *c) {
    return c->matrix_dtype >= INF_DTYPE_I4_32 ? INF_DTYPE_I8
           : c->matrix_dtype != 0             ? c->matrix_dtype
                                              : c->dtype;
}

static inline int32_t inf_matrix_dtype(const inf_device_config *c) {
    return c->matrix_dtype != 0 ? c->matrix_dtype : c->dtype;
}

/* Whether row r samples behind a draft: the row in front of it samples for the same request. */
static inline int inf_row_follows(const inf_step_buffers *s, uint32_t r) {
    const inf_step_row *row = &s->rows[r];
    return r > 0 && row->target < 0 && row[-1].target < 0 && row[-1].seq == row->seq;
}

/* How many of the request's tokens up to row r's own are drafts. */
static inline uint32_t inf_row_drafts(const inf_step_buffers *s, uint32_t r) {
    uint32_t n = 0;
    while (inf_row_follows(s, r - n)) {
        n++;
    }
    return n;
}

/* Whether row r's token, which is sampled, is one of the request's text; before says so of the row
 * in front of it. A row behind a draft counts where that draft is what was sampled. */
static inline int inf_row_holds(const inf_step_buffers *s, uint32_t r, int before) {
    const inf_step_row *row = &s->rows[r];
    if (row->target >= 0) {
        return 0;
    }
    if (!inf_row_follows(s, r)) {
        return 1;
    }
    return before && s->row_out[r - 1].token == s->tokens[row->token];
}

/* Whether a slot's tokens are counted. */
static inline int inf_sampling_counts(const inf_sampling *s) {
    return s->repetition != 1 || s->presence != 0 || s->frequency != 0;
}

struct inf_backend_ops {
    void (*close)(inf_backend *);

    /* ---- memory, from any thread ---- */
    void *(*alloc)(inf_backend *, uint64_t bytes); /* zeroed; NULL: there is none */
    void (*free)(inf_backend *, void *device);     /* safe on NULL */
    /* Pages of the pool may cost memory only when they are first written. */
    void *(*alloc_pool)(inf_backend *, uint64_t bytes);
    void (*free_pool)(inf_backend *, void *device, uint64_t bytes);
    /* A [n, k] matrix for product, from row-major host data in src_dtype; NULL: no memory. */
    void *(*matrix)(inf_backend *, int32_t dtype, const void *host, int32_t src_dtype, int32_t n,
                    int32_t k, int32_t cut);
    /* Device memory that names n matrices, which stay the caller's and outlive it; NULL: no memory.
     */
    void *(*list)(inf_backend *, void *const *matrices, int32_t n);
    /* Takes a malloc'ed host buffer and gives it back as device memory (the same one, where host
     * memory is device memory); NULL: no memory, and the buffer is freed. cut: NONE or ROWS. */
    void *(*adopt)(inf_backend *, void *host, uint64_t bytes, int32_t cut);

    /* Lets the device reach host memory where it lies, so that queries, merge and answer need no
     * copy of it; whole pages, none of them pinned already. INF_OK, or why not: then what lies
     * there is copied, as anything that is not pinned. Both NULL: the device has no use for it.
     * unpin, of what pin took, waits for the device, and comes before the memory's end. */
    int (*host_pin)(inf_backend *, void *host, uint64_t bytes);
    void (*host_unpin)(inf_backend *, void *host);

    /* Pools that instances of one host copy into, each other's. All NULL: the device's memory
     * cannot be shared. export makes a key that only members of the cluster may have, with which
     * another process opens the pool as device memory of its own, of *bytes bytes at the least:
     * that is known here, and not the word of who made the key. close before the backend is, and
     * after the last copy. *why: of a failure, in words, good until the thread's next call. */
    int (*pool_export)(inf_backend *, void *pool, inf_pool_key *out, const char **why);
    uint8_t *(*pool_open)(inf_backend *, const inf_pool_key *key, uint64_t *bytes,
                          const char **why);
    void (*pool_close)(inf_backend *, const inf_pool_key *key, uint8_t *pool);

    /* What a NIC needs to write into device memory; each returns 0 or an errno. All NULL: device
     * memory is host memory, or no NIC can. export: a dma-buf in which what lies at device begins
     * at *offset, the caller's to close. peermem: 0 if the kernel module is loaded. flush: what
     * NICs wrote before is visible to the device; 0 as well where that needs nothing. */
    int (*nic_export)(inf_backend *, void *device, uint64_t bytes, int *fd, uint64_t *offset);
    int (*nic_peermem)(inf_backend *);
    int (*nic_flush)(inf_backend *);

    /* ---- lanes ---- */
    int (*lane_open)(inf_backend *, const inf_lane_config *config, inf_lane **out, inf_err *err);
    void (*lane_close)(inf_lane *); /* safe on NULL */
    /* Waits until all that was asked is done. */
    int (*sync)(inf_lane *, inf_err *err);
    /* Copies; host memory is not touched by the caller before sync. */
    void (*copy_out)(inf_lane *, void *host, const void *device, uint64_t bytes);
    void (*copy_in)(inf_lane *, void *device, const void *host, uint64_t bytes);
    /* Rows of width bytes, pitch apart in host memory and without gaps on the device. */
    void (*copy_rows_out)(inf_lane *, void *host, uint64_t pitch, const void *device,
                          uint64_t width, uint64_t rows);
    void (*copy_rows_in)(inf_lane *, void *device, const void *host, uint64_t pitch, uint64_t width,
                         uint64_t rows);
    /* From device memory to device memory, of which one may be an opened pool's; NULL where
     * pool_open is. */
    void (*copy)(inf_lane *, void *to, const void *from, uint64_t bytes);
    /* Sums and gathers over the ranks whose lanes are named. */
    int (*collective_open)(const inf_collective_config *config, inf_collective **out, inf_err *err);

    /* ---- the step, on the step's lane ---- */

    /* Takes the step's input: tokens, positions, tables. The step is validated, and stays as it is
     * until the lane was synchronised. Rows are the step's tokens from here on. halves: NULL, or
     * [INF_HALVES], the same as two steps, of which the first is at least as long (model/halves.h);
     * of such a step the whole attends nowhere. */
    void (*begin)(inf_lane *, const inf_step_buffers *step, const inf_step_buffers *halves);
    /* From here on operations are on the rows of one half, or on the whole step again: what is
     * given to them still begins with the step's first row, and row numbers are the half's. What is
     * open of attention is settled before. Not between record and recorded. */
    void (*half)(inf_lane *, int32_t half);
    /* Work between record and recorded depends on nothing but what begin took, the number of rows
     * and the key. 1: it was done from a recording, and the caller leaves it out. 0: the caller
     * asks for it, and again if recorded says 1: what was asked was to be recorded and nothing of
     * it was done. */
    int (*record)(inf_lane *, uint32_t key);
    int (*recorded)(inf_lane *);

    /* x[r, :] = embed_scale table[token r, :] */
    void (*embed)(inf_lane *, const void *table, float *x);
    /* x += add (NULL: nothing), or where post is not NULL x += rms_norm(add) * post, and add may be
     * changed; y = rms_norm(x) * weight, or x where weight is NULL (y NULL: nothing). x [rows,
     * hidden]. */
    void (*add_norm)(inf_lane *, float *x, void *add, const float *post, const float *weight,
                     void *y);
    /* y[i, :] = rms_norm(x[row of output row first + i, :]) * weight for n output rows. */
    void (*pick_norm)(inf_lane *, const float *x, uint32_t first, int32_t n, const float *weight,
                      void *y);
    void (*product)(inf_lane *, const inf_product *p);
    /* q and k norms, rotation (the layer's, inf_device_config.ropes), q packed, k and v appended to
     * the pool. */
    void (*heads)(inf_lane *, const inf_heads *p);
    /* Local partials of all rows. Not open: o is final. Open: o is settled after merges, by settle.
     */
    void (*attend)(inf_lane *, int32_t layer, const void *q, void *o, int32_t open);
    /* Merges a partial of others, host o2 [rows, heads, head_dim] and lse2 [rows, heads], into rows
     * row0... The rows of host memory have room for `stride` heads, of which the lane's come first;
     * a row of o2 is stride * head_dim. 0: the host memory is the caller's again. 1: it is read
     * where it lies, and the caller's again after the lane's next sync. */
    int (*merge)(inf_lane *, uint32_t row0, int32_t rows, const float *o2, const float *lse2,
                 int32_t stride);
    /* After the last merge of a layer, of which there may be none. */
    void (*settle)(inf_lane *, void *o);
    /* A product, and then add_norm of x and it. p->y is room for the product, of which nobody else
     * takes note; it may be y. y is for products alone: a device may leave out what it puts into
     * them. */
    void (*product_norm)(inf_lane *, const inf_product *p, float *x, const float *post,
                         const float *weight, void *y);
    /* The product's outputs are gate | up; y [rows, intermediate] = activation(gate) * up. p->y is
     * room for the product, of which nobody else takes note. */
    void (*gated)(inf_lane *, const inf_product *p, void *y);
    /* Room for what is in between is the lane's. */
    void (*experts)(inf_lane *, const inf_experts *p);
    /* Rows of q as f32 into host memory, whose rows have room for `stride` heads, of which the
     * lane's come first; there after sync, and not touched by the caller before. */
    void (*queries)(inf_lane *, const void *q, uint32_t row0, int32_t rows, float *host,
                    int32_t stride);
    /* Where the device goes on beside the caller: leave, after a layer's queries, lets them go
     * ahead of what is asked for next; left waits until they and all that was asked for before
     * leave are done, without waiting for the rest. INF_EIO: the lane's fault. Both NULL: sync
     * does. */
    void (*leave)(inf_lane *);
    int (*left)(inf_lane *, inf_err *err);

    /* Sampling on the device. Both NULL: it has none, and logits are sampled on the CPU. slot_open
     * takes what inf_device_slot_open does, checked, for a slot that is in no step; from any
     * thread. sample fills out[i] and status[i] for output rows first.. of the step, there after
     * sync. */
    int (*slot_open)(inf_lane *, uint32_t slot, const inf_sampling *sampling, const int32_t *tokens,
                     int64_t n_tokens, int64_t n_prompt, const int32_t *bias_ids, const float *bias,
                     int32_t n_bias, inf_err *err);
    void (*sample)(inf_lane *, const float *logits, uint32_t first, int32_t n, inf_row_out *out,
                   int32_t *status);

    /* ---- answering others, on a lane of its own ---- */

    /* Partials of host q into host o and lse, one inf_attn per span. Those that follow each other
     * with the same o are spans of the same rows, and merged. They may be of several messages and
     * layers, max_segments at most; those whose windows are the same stand together. Done on
     * return. INF_EINVAL: some are more than the lane holds, and it is as good as before. Any other
     * status is the lane's. */
    int (*answer)(inf_lane *, const inf_attn *args, int32_t n, inf_err *err);
};

#ifdef __cplusplus
extern "C" {
#endif

/* A backend of n ranks, 2 to INF_MAX_RANKS, which are of one kind; takes them, also when it fails.
 * The config is the model's: its heads, kv heads and intermediate are multiples of n. */
int inf_backend_tp(inf_backend *const *ranks, int32_t n, const inf_device_config *config,
                   inf_backend **out, inf_err *err);

/* isa as in inf_device_config; NULL when the CPU or the build lacks it. */
inf_backend *inf_backend_cpu(int32_t isa);

/* A GPU by its number among those that the process sees. The library (libinfinite_cuda.so) is
 * looked for at INFINITE_CUDA_LIBRARY, beside the program, and where the linker looks.
 * INF_EUNSUPPORTED and why if there is none, or no such device. */
int inf_backend_cuda(int32_t ordinal, const inf_device_config *config, inf_backend **out,
                     inf_err *err);

#ifdef __cplusplus
}
#endif

/* What the library exports. The sizes are those that the caller was built with; a library that was
 * built with others is refused. */
#define INF_CUDA_OPEN "inf_cuda_backend_open_12"
typedef int (*inf_cuda_open_fn)(int32_t ordinal, const inf_device_config *config,
                                uint64_t config_bytes, uint64_t ops_bytes, inf_backend **out,
                                inf_err *err);

#endif
