/* The inside of the CUDA backend: what lane.cu, attend.cu, step.cu, exchange.cu and answer.cu
 * share.
 *
 * A lane is a stream, its scratch in device memory, and a piece of pinned host memory that both
 * sides see: what a step's kernels need of its input (tokens, tables, plans) is written there and
 * taken to fixed addresses by one kernel, so that a captured graph finds the next step's input
 * where it found the last's. */
#ifndef INF_CUDA_LANE_H
#define INF_CUDA_LANE_H

#include <pthread.h>

#include "kernels/backend.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/plan.h"
#include "kernels/cuda/prelude.cuh"
#include "kernels/cuda/product.h"
#include "kernels/cuda/product_small.h"
#include "kernels/cuda/sampling.h"
#include "runtime/fail.h"

/* Layers with the same window are a class and share a plan. */
enum { MAX_CLASSES = 8, MAX_SECTIONS = 14 + 5 * INF_HALVES * MAX_CLASSES };

struct pinned_stretch {
    uint8_t *host, *device;
    uint64_t bytes;
};

/* By host, none over another; pinned.cu. */
struct pinned_list {
    pthread_mutex_t lock;
    pinned_stretch *all; /* [room] */
    int32_t n, room;
};

struct cuda_backend {
    inf_backend base;
    pinned_list pinned;
    int32_t ordinal, sms;
    /* What may be left out, to find what is at fault: backend.cu. */
    int32_t record, small, small3, fuse, early_small, early_rows, early_decode, prefetch, wgmma,
        boxes;
    int32_t direct;
    int32_t through;      /* of inf_cuda_small, for products whose ways are not timed */
    int32_t stay;         /* where ways are timed, blocks that stay are among them */
    int32_t only_through; /* and no other by product_small.h */
};

/* Words from the inbox to a fixed place. */
struct inbox_section {
    uint32_t *to;
    uint32_t from, words; /* in the inbox */
};

/* A plan's arrays on the device; counts = {decode pieces, prefill pieces}. */
struct class_lists {
    int32_t window;
    inf_cuda_work *decode, *prefill;
    uint32_t *off, *list;
    int32_t *counts;
    /* of the step or answer under way */
    int32_t n_decode, n_prefill;
    uint32_t n_parts;
    bool combine; /* parts that the decode kernel does not merge itself */
};

/* What a slot's sampling is: its parameters, and its bias with each token once. */
struct lane_slot {
    inf_sampling sampling;
    int32_t counted; /* 1: a penalty is on, and the slot's row of counts is in use */
    int32_t n_bias;
    int32_t *bias_ids;
    float *bias;
    /* Of the last step with drafts: tokens that became part of the text and are not counted yet. */
    int32_t n_uncounted;
    uint32_t uncounted[INF_MAX_DRAFTS + 1];
};

struct recording {
    cudaGraphExec_t exec; /* NULL: none yet, or it came to nothing */
    int32_t seen;         /* times that the work was asked for; recorded the second time */
};

/* Rows of q that wait for the next sync, to be copied to host memory. */
struct pending_rows {
    uint32_t row0;
    int32_t rows, stride; /* heads of a row of host memory */
    float *host;
};

/* Of a model with experts; places are rows times the experts of each (experts.h). */
struct lane_experts {
    float *logits, *scale, *weight;
    int32_t *chosen, *place, *source, *n_items;
    inf_cuda_item *items;
    void *act;                                 /* [places, expert_intermediate] */
    float *out;                                /* [places, hidden] */
    void *shared_gu, *shared_act, *shared_out; /* [max_rows, ..] of the shared expert */
};

struct inf_lane {
    cuda_backend *backend;
    cudaStream_t stream;
    int32_t kind;
    int32_t fault; /* the first cudaError_t, or a negative cuBLAS or NCCL status */
    const char *fault_at;
    const char *fault_text; /* what it means; NULL: fault says it */
    inf_collective *sum;    /* over the ranks of which this lane is one; NULL: it is not */
    int32_t rank;

    inf_device_config dims;
    inf_kv_shape kv;
    uint8_t *pool;
    float scale;
    int32_t q_dim, qkv_dim, act, act_bytes;
    int32_t max_rows, max_segments, max_blocks;
    int32_t n_classes;
    int32_t *class_of; /* host [layers] */
    inf_cuda_plan_shape shape;
    inf_cuda_plan_sizes sizes;
    class_lists classes[MAX_CLASSES]; /* of a step, an answer or a first half */
    class_lists second[MAX_CLASSES];  /* of a second half, if the backend has steps in halves */
    inf_cuda_products *products;

    void *taken[128], *pinned[16], *kept[32]; /* all memory that lane_close frees */
    int32_t n_taken, n_pinned, n_kept;

    /* Pinned host memory. */
    uint32_t *inbox;
    uint64_t inbox_words, inbox_used;
    inbox_section sections[MAX_SECTIONS];
    int32_t n_sections;
    /* Where messages are not pinned: queries out and partials in, [max_rows, q_dim], or answers. */
    float *staging, *staging_lse;
    uint64_t direct_rows, staged_rows; /* that were exchanged, for tests */

    /* Ordinary memory, where plans are made. */
    inf_cuda_work *plan_decode, *plan_prefill;
    uint32_t *plan_off, *plan_list;
    inf_cuda_segment *host_segments;

    /* Device memory. */
    int32_t *tokens, *kv_block, *kv_index, *pick, *blocks;
    uint32_t *position;
    inf_cuda_segment *segments;
    float *inv_freq, *cos, *sin; /* [ropes, rotary_dim / 2]; [ropes, max_rows, rotary_dim / 2] */
    float *head_scales;          /* [max_rows, 2], of norms over all heads, else NULL */
    int32_t *rope_of;            /* host [layers]: which rotation */
    float *part_o, *part_lse;
    uint32_t *done;         /* [max_rows, kv_heads], zeros between launches */
    float *squares;         /* [8 rows, hidden / 16], of a product that ended in a norm */
    const void *unscaled;   /* .. and its y, which the products that read it scale; NULL: none */
    float *o32, *lse;       /* [max_rows, heads, head_dim], [max_rows, heads] */
    float *o2, *lse2;       /* answer: of a run of spans that goes on in a second batch */
    void *q;                /* answer: [max_rows, heads, head_dim] of act */
    inf_cuda_place *places; /* answer: [max_rows] */

    /* Answers, in ordinary memory: of which batch the device has segments, blocks and plan
     * (answer.cu). */
    struct {
        int32_t n, class_of;        /* n 0: of none */
        inf_cuda_segment *segments; /* [max_segments] */
        int32_t *blocks;            /* [max_blocks] */
    } known;
    inf_kv_shape kv_layers, kv_layer; /* the pool, and as one of a single layer */
    uint64_t plans, placed;           /* plans and rows placed by attention, for tests */

    /* Sampling: slots in ordinary memory, results in pinned memory, the rest on the device. */
    lane_slot *slots; /* [max_seqs] */
    inf_cuda_sample_row *sample_rows;
    int32_t *bias_ids;
    float *bias;
    uint32_t *masks;  /* [max_seqs, inf_mask_words(vocab)] */
    uint32_t *counts; /* [max_seqs, vocab], NULL until a slot has a penalty */
    uint32_t *pairs;  /* [max_seqs * (INF_MAX_DRAFTS + 1), 2]: what is to be counted before it */
    int32_t n_pairs;
    void *sample_scratch;
    inf_row_out *sampled;    /* [logit_rows] */
    int32_t *sampled_status; /* [logit_rows] */
    uint32_t sample_needs;   /* of the step's rows */
    inf_row_out *sampled_to; /* where they are wanted, NULL: nothing waits */
    int32_t *sampled_status_to;
    int32_t n_sampled;
    uint32_t sampled_first; /* the first of the step's rows that are sampled */
    int32_t holds;          /* the last row of those before is of its request's text */

    /* The step under way. */
    const inf_step_buffers *step, *halves;
    int32_t rows, recordable; /* rows that operations are on: the step's, or those of a half */
    int64_t row0;             /* the first of them */
    int32_t first_segment;    /* of theirs */
    class_lists *lists;       /* of their attention */
    float *partial;     /* where open partials are: o32, or the output itself when act is f32 */
    const void *asked;  /* q of the pending queries */
    pending_rows *wait; /* [max_wait] */
    int32_t n_wait, max_wait;
    int32_t staged;         /* rows of partials in staging */
    cudaEvent_t gone;       /* the queries of the layer under way are where they are to be */
    inf_cuda_runs given;    /* queries on their way to where they lie */
    inf_cuda_runs taken_in; /* partials that wait for their merge */
    recording *recordings;  /* [RECORD_ROWS, keys] */
    int32_t keys;
    recording *capturing;
    const void *unscaled_before;                 /* what unscaled was when it began */
    uint8_t choices[2][INF_CUDA_SMALL_ROWS + 1]; /* choose.cu */
    lane_experts experts;
};

/* HALF_ROWS: reckoned, not measured; a product of bf16 is bound by arithmetic from 150 on. */
enum { RECORD_ROWS = 64, LOGIT_ROWS = 128, HALF_ROWS = 512 };

/* Memory of a lane, freed with it: device memory, zeroed; pinned host memory; ordinary memory,
 * zeroed. */
bool lane_take(inf_lane *l, void **out, uint64_t bytes);
bool lane_pin(inf_lane *l, void **out, uint64_t bytes);
bool lane_keep(inf_lane *l, void **out, uint64_t bytes);
template <typename T> static bool take(inf_lane *l, T **out, uint64_t count) {
    return lane_take(l, (void **)out, count * sizeof(T));
}
template <typename T> static bool pin(inf_lane *l, T **out, uint64_t count) {
    return lane_pin(l, (void **)out, count * sizeof(T));
}
template <typename T> static bool keep(inf_lane *l, T **out, uint64_t count) {
    return lane_keep(l, (void **)out, count * sizeof(T));
}

/* choose.cu: whether a product of few rows goes by the kernels for them, and by which: s->through.
 * The first of a kind times all ways. */
bool lane_small_is_faster(inf_lane *l, const inf_product *p, inf_cuda_small *s, void *y);
/* gate | up by the library, then activation(gate) * up, with the scale that x lacks. */
bool lane_gated_by_library(inf_lane *l, const inf_product *p, const inf_cuda_small *s, void *y);

/* draw.cu: sampling. */
bool draw_memory(inf_lane *l);
void draw_close(inf_lane *l);
void draw_begin(inf_lane *l, const inf_step_buffers *step);
void draw_synced(inf_lane *l);
uint64_t draw_inbox_words(const inf_lane *l);
int inf_cuda_slot_open(inf_lane *l, uint32_t slot, const inf_sampling *sampling,
                       const int32_t *tokens, int64_t n_tokens, int64_t n_prompt,
                       const int32_t *bias_ids, const float *bias, int32_t n_bias, inf_err *err);
void inf_cuda_draw(inf_lane *l, const float *logits, uint32_t first, int32_t n, inf_row_out *out,
                   int32_t *status);

/* experts.cu */
bool experts_memory(inf_lane *l);
void inf_cuda_experts(inf_lane *l, const inf_experts *p);

/* Adds a run; when there is room for no more, flush launches what is there, and empties it. */
template <class F>
static void add_run(inf_cuda_runs *runs, uint32_t row0, int32_t rows, float *o, float *lse,
                    int32_t stride, const F &flush) {
    if (!inf_cuda_runs_add(runs, row0, rows, o, lse, stride)) {
        flush();
        (void)inf_cuda_runs_add(runs, row0, rows, o, lse, stride);
    }
}

/* Notes the first fault; true when there is none so far. */
bool lane_ok(inf_lane *l, int status, const char *at);

/* Whether the code for this thread's GPU waits for the kernel in front where it begins early. What
 * the driver translates from code for sm_80 does not, on a newer GPU either. */
bool lane_code_waits();

/* The inbox: room for words that go to a fixed place; NULL (and a fault) when it is full. */
void inbox_begin(inf_lane *l);
uint32_t *inbox_put(inf_lane *l, void *to, uint64_t bytes);
void inbox_send(inf_lane *l);

/* Makes the plan of a class for n_segments, and puts it into the inbox. */
void lane_plan(inf_lane *l, class_lists *c, const inf_cuda_segment *segments, int32_t n_segments,
               int32_t rows);
/* What becomes of attention. */
struct attend_to {
    void *o;
    int32_t o_dtype;
    float *lse;                   /* NULL: nobody reads it */
    const inf_cuda_place *places; /* NULL, or where it goes instead, if lane_places said so */
    bool own; /* since all that came before had ended, kernels wrote q and the rows' own keys, and
               * nothing else that attention reads */
};
/* Attention by a class's plan, and the merge of its parts. whole: also what the plan of this step
 * has no use for, since a graph is recorded that later steps use. */
void lane_attend(inf_lane *l, const class_lists *c, int32_t layer, const void *q,
                 const attend_to *to, int32_t rows, bool whole);
/* Whether the plan's rows can each go to a place of their own. */
bool lane_places(inf_lane *l, const class_lists *c);

/* pinned.cu: where the GPU sees what lies at host, NULL if not all of it is pinned. */
void *pinned_find(cuda_backend *b, const void *host, uint64_t bytes);
void pinned_open(cuda_backend *b);
void pinned_close(cuda_backend *b);
int inf_cuda_host_pin(inf_backend *b, void *host, uint64_t bytes);
void inf_cuda_host_unpin(inf_backend *b, void *host);

/* nic.cu */
/* A function of the driver as CUDA 11.7 has it, found at run time, so that nothing is linked with
 * the driver; NULL: it has none of that name. */
void *driver_function(const char *name);
int inf_cuda_nic_export(inf_backend *b, void *device, uint64_t bytes, int *fd, uint64_t *offset);
int inf_cuda_nic_peermem(inf_backend *b);
int inf_cuda_nic_flush(inf_backend *b);

/* shared.cu */
int inf_cuda_pool_export(inf_backend *b, void *pool, inf_pool_key *out, const char **why);
uint8_t *inf_cuda_pool_open(inf_backend *b, const inf_pool_key *key, uint64_t *bytes,
                            const char **why);
void inf_cuda_pool_close(inf_backend *b, const inf_pool_key *key, uint8_t *pool);
/* A pool of so many bytes that may be exported from here on, until shared_end; false: no memory. */
bool shared_begin(const void *pool, uint64_t bytes);
/* Waits until nobody in this process has the pool open; false: somebody does not let go. */
bool shared_end(const void *pool);

/* Where the GPU sees n rows of messages, stride heads apart, in *at and, unless it is NULL, *lse.
 * False: they are not all pinned, and stay what they were. */
bool lane_sees(const inf_lane *l, int32_t rows, int32_t stride, float **at, float **lse);
/* Takes note of rows that are exchanged in place, or by way of staging. */
void lane_count(inf_lane *l, int32_t rows, bool direct);
/* Both. False: the caller uses staging. */
bool lane_direct(inf_lane *l, int32_t rows, int32_t stride, float **at, float **lse);

/* Waits for the event, or for all of the stream where that is NULL; the lane's GPU is the thread's.
 * What another rank's failure keeps from coming is waited for until that is found out. */
cudaError_t lane_await(inf_lane *l, cudaEvent_t event);
/* Waits likewise, and notes what the lane comes to: a rank that was lost, or else that the wait
 * failed. */
void lane_settle(inf_lane *l, cudaEvent_t event, const char *at);

void lane_enter(inf_lane *l); /* makes the lane's GPU the calling thread's */
int lane_sync(inf_lane *l, inf_err *err);
int lane_status(const inf_lane *l, inf_err *err); /* INF_OK, or INF_EIO and what failed */
void lane_copy(inf_lane *l, void *to, const void *from, uint64_t bytes, cudaMemcpyKind kind);

void inf_cuda_step_table(inf_backend_ops *ops);     /* fills in all that is not memory */
void inf_cuda_exchange_table(inf_backend_ops *ops); /* .. of which this is a part */
bool answer_pool(inf_lane *l); /* an answer's view of the pool; false: it is too large */
/* collective.cu, of a lane with a sum. lose: the lane failed. tell: the lane takes note of what was
 * lost, in the thread that uses it; true: something was. await: lane_await. */
void collective_lose(inf_lane *l, int32_t status, const char *at);
bool collective_tell(inf_lane *l);
cudaError_t collective_await(inf_lane *l, cudaEvent_t event);
int inf_cuda_collective_open(const inf_collective_config *config, inf_collective **out,
                             inf_err *err);
int inf_cuda_answer(inf_lane *l, const inf_attn *args, int32_t n, inf_err *err);
int inf_cuda_lane_open(inf_backend *b, const inf_lane_config *config, inf_lane **out, inf_err *err);
void inf_cuda_lane_close(inf_lane *l);

#endif
