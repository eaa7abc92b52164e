/* Door 1: the device, one instance's model, KV pool and step.
 *
 * Life of a device:
 *   open -> load every tensor -> ready -> { step buffers are filled; submit; wait } ... -> close
 * Beside the steps, from any thread: slot_open, span_set / span_close, wave_open / wave_close,
 * move_post / move_wait, peer_attach / peer_serve / peer_detach / peer_status.
 *
 * Ownership:
 *  1. The device copies what it needs from its arguments; it keeps no pointer to the caller's
 * memory.
 *  2. The step buffers are the device's, allocated once in ready. The caller writes the input part
 *     between wait and submit, reads the output part after wait, and touches neither in between.
 *  3. One step is in flight at a time.
 *  4. Links given to peer_attach and peer_serve are the device's, also when the call fails; it
 * closes them.
 *  5. A block listed in a step, in a hosted span or in a posted move is not reused by the caller
 * until the step was waited for, the span closed, or the move completed.
 *
 * Positions count tokens of a request from 0. Shapes are [tokens, heads, head_dim], row-major.
 * LSE is base e. */
#ifndef INFINITE_DEVICE_H
#define INFINITE_DEVICE_H

#include "infinite/link.h"
#include "infinite/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct inf_device inf_device;

/* E4M3 (4 bits of exponent, 3 of mantissa, +-448 at most, no infinities) is for KV alone. */
enum { INF_DTYPE_F32 = 1, INF_DTYPE_F16 = 2, INF_DTYPE_BF16 = 3, INF_DTYPE_E4M3 = 4 };
/* Integers of -127 to 127, with a scale in f32 for each output and INF_I8_GROUP inputs, from the
 * first: for matrices alone. */
enum { INF_DTYPE_I8 = 5, INF_I8_GROUP = 128 };
/* Integers of 0 to 15, a weight being scale * (q - zero), with scale and zero in f16 for each
 * output and 32, 64 or 128 inputs: for matrices alone. Tensors come in them too, where the inputs
 * are a multiple of the group: each row is groups of scale, zero, and the group's q, two in a byte,
 * the first in the lower half. */
enum { INF_DTYPE_I4_32 = 6, INF_DTYPE_I4_64 = 7, INF_DTYPE_I4_128 = 8 };
enum { INF_MAX_TOP = 20 };    /* log probabilities per row beyond the chosen token's */
enum { INF_MAX_PEERS = 256 }; /* peer indexes are 0..255 */
enum { INF_MAX_BIAS = 1024 }; /* logit_bias entries of a request */
enum { INF_MAX_DRAFTS = 15 }; /* tokens of a request in a step that are drafts */
enum { INF_MAX_WAVES = 4 };   /* open at once; their numbers are 1..INF_MAX_WAVES */

enum {
    INF_ROLE_EMBED = 1,      /* [vocab, hidden] */
    INF_ROLE_FINAL_NORM = 2, /* [hidden] */
    INF_ROLE_LM_HEAD = 3,    /* [vocab, hidden] */
    INF_ROLE_ATTN_NORM = 10, /* [hidden] */
    INF_ROLE_Q = 11,         /* [heads * head_dim, hidden] */
    INF_ROLE_K = 12,         /* [kv_heads * head_dim, hidden] */
    INF_ROLE_V = 13,         /* [kv_heads * head_dim, hidden] */
    INF_ROLE_Q_BIAS = 14,
    INF_ROLE_K_BIAS = 15,
    INF_ROLE_V_BIAS = 16,
    INF_ROLE_Q_NORM = 17,   /* [head_dim], with INF_MODEL_QK_NORM_ALL [heads * head_dim] */
    INF_ROLE_K_NORM = 18,   /* [head_dim], with INF_MODEL_QK_NORM_ALL [kv_heads * head_dim] */
    INF_ROLE_O = 19,        /* [hidden, heads * head_dim] */
    INF_ROLE_MLP_NORM = 20, /* [hidden] */
    INF_ROLE_GATE = 21,     /* [intermediate, hidden] */
    INF_ROLE_UP = 22,       /* [intermediate, hidden] */
    INF_ROLE_DOWN = 23,     /* [hidden, intermediate] */
    /* Instead of GATE, UP and DOWN, in a layer with experts: */
    INF_ROLE_ROUTER = 24,        /* [experts, hidden] */
    INF_ROLE_EXPERT_GATE = 25,   /* of each expert: [expert_intermediate, hidden] */
    INF_ROLE_EXPERT_UP = 26,     /* likewise */
    INF_ROLE_EXPERT_DOWN = 27,   /* of each expert: [hidden, expert_intermediate] */
    INF_ROLE_SHARED_GATE = 28,   /* [shared_intermediate, hidden] */
    INF_ROLE_SHARED_UP = 29,     /* [shared_intermediate, hidden] */
    INF_ROLE_SHARED_DOWN = 30,   /* [hidden, shared_intermediate] */
    INF_ROLE_SHARED_ROUTER = 31, /* [1, hidden] */
    /* With INF_MODEL_POST_NORMS: */
    INF_ROLE_ATTN_POST_NORM = 32, /* [hidden], of what attention gives */
    INF_ROLE_MLP_POST_NORM = 33,  /* [hidden], of what the MLP gives */
    INF_ROLE_LAST = INF_ROLE_MLP_POST_NORM,
};

enum {
    INF_MODEL_QKV_BIAS = 1,
    INF_MODEL_QK_NORM = 2,
    INF_MODEL_TIED = 4, /* LM_HEAD is EMBED; LM_HEAD is not loaded */
    /* No tensor is loaded and no step is run, so there are no step buffers: the device has a pool,
     * hosts blocks of others and answers their queries. */
    INF_MODEL_NO_WEIGHTS = 8,
    INF_MODEL_NORM_TOPK = 16, /* the weights of a token's experts add up to 1 */
    /* What attention and MLP give is normed before it is added to the residual stream. */
    INF_MODEL_POST_NORMS = 32,
    /* They read the residual stream as it is: no ATTN_NORM, no MLP_NORM. With POST_NORMS alone. */
    INF_MODEL_NO_PRE_NORMS = 64,
    /* With QK_NORM: one norm over all heads of q, and one over those of k. Not on several ranks. */
    INF_MODEL_QK_NORM_ALL = 128,
};

/* y of a gate x: silu is x / (1 + e^-x); gelu, in the form with tanh,
 * x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). Experts have silu. */
enum { INF_ACT_SILU = 0, INF_ACT_GELU_TANH = 1 };

enum { INF_MAX_EXPERTS = 1024, INF_MAX_EXPERTS_PER_TOKEN = 64 };

typedef struct inf_device_config {
    /* the model */
    int32_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocab;
    uint32_t model_flags;
    float rms_eps;
    float rope_scale; /* multiplies cos and sin */
    /* numbers */
    int32_t dtype;    /* of weights: F32, BF16 or, on a GPU, F16; sums are always f32 */
    int32_t kv_dtype; /* of K and V: 0 for dtype, or E4M3, rounded and saturated, scale 1 */
    /* the pool */
    int32_t block_size, num_blocks;
    /* limits of one step; the step buffers have these sizes */
    int32_t max_tokens, max_seqs, max_rows;
    int32_t max_step_blocks; /* entries of all block tables of one step */
    int32_t max_step_spans;
    int32_t max_spans; /* hosted spans: handles are 0..max_spans-1 */
    int32_t threads;   /* of the step's pool; the same again, lazily, for partials of others */
    int32_t isa; /* 0: best of this CPU but 4; 1 plain C, 2 AVX2, 3 AVX-512, 4 with bf16 products */
    int32_t gpu; /* 0: the CPU; n: CUDA device n - 1 of those that the process sees */
    /* Ranks that heads, kv heads and intermediate are cut over (kernels/tp), 1 to 8, 0 as 1. On a
     * GPU they are CUDA devices gpu - 1, gpu, ...; on the CPU they share its memory and threads. */
    int32_t tensor_parallel;
    int32_t matrix_dtype; /* of matrices but the embedding: 0 for that of each tensor where it is
                           * I4, else dtype; or, on the CPU, I8 or I4, with the LM head in I8 */
    /* A mixture of experts: 0 experts, and the rest 0, is a model without. A layer has experts if
     * tensors of theirs are loaded for it, else the MLP of `intermediate`. In such a layer
     *   p = softmax(ROUTER h);  the experts_per_token largest p_e, of equal ones the first, are
     * kept, and with INF_MODEL_NORM_TOPK divided by their sum;
     *   y = sum_e p_e DOWN_e (silu(GATE_e h) * UP_e h)
     *       + sigmoid(SHARED_ROUTER h) SHARED_DOWN (silu(SHARED_GATE h) * SHARED_UP h)
     * the last line where shared_intermediate > 0. Logits and weights of experts are f32. */
    int32_t experts, experts_per_token, expert_intermediate, shared_intermediate;
    /* What else families of models differ in; 0 is Llama's. Home and creditors must have the same
     * attn_scale and attn_softcap, of which a partial is made. */
    int32_t activation;  /* of the MLP's gate: INF_ACT_* */
    float attn_scale;    /* of q.k; 0: 1 / sqrt(head_dim) */
    float attn_softcap;  /* a score s becomes attn_softcap tanh(s / attn_softcap); 0: stays */
    float logit_softcap; /* likewise of the logits, log probabilities are of what they became */
    float embed_scale;   /* multiplies the embedding where it enters the layers; 0: 1 */
    int32_t rotary_dim;  /* of a head's numbers the first so many are rotated; 0: all */
    int32_t ropes;       /* 2: layers with a window have frequencies of their own; 0 as 1 */
} inf_device_config;

_Static_assert(sizeof(inf_device_config) == 144, "inf_device_config is mirrored in Go");

static inline int32_t inf_rotary_dim(const inf_device_config *c) {
    return c->rotary_dim > 0 ? c->rotary_dim : c->head_dim;
}
static inline int32_t inf_ropes(const inf_device_config *c) { return c->ropes > 1 ? c->ropes : 1; }

/* inv_freq: [ropes, rotary_dim / 2]; the second rotation, of layers with a window, is not scaled by
 * rope_scale. windows: [layers], tokens a query may look back including itself, 0 = all. */
int inf_device_open(const inf_device_config *config, const float *inv_freq, const int32_t *windows,
                    inf_device **out, inf_err *err);

/* Takes one tensor of the model, row-major, of bytes == rows * cols * sizeof(dtype), or in I4 those
 * of its rows; tensors that are one matrix (Q, K and V; gate and up) have one dtype. layer is -1
 * for EMBED, FINAL_NORM and LM_HEAD. Vectors have rows == 1. */
int inf_device_load(inf_device *device, int32_t role, int32_t layer, int32_t dtype, int64_t rows,
                    int64_t cols, const void *data, uint64_t bytes, inf_err *err);

/* The same for a tensor of one expert, of EXPERT_GATE, _UP and _DOWN. */
int inf_device_load_expert(inf_device *device, int32_t role, int32_t layer, int32_t expert,
                           int32_t dtype, int64_t rows, int64_t cols, const void *data,
                           uint64_t bytes, inf_err *err);

/* Checks that every tensor came, allocates the pool and the step buffers, starts the threads; with
 * INF_MODEL_NO_WEIGHTS just the pool, and what answers others. */
int inf_device_ready(inf_device *device, inf_err *err);

void inf_device_close(inf_device *device);

/* Bytes of one KV block: layers * 2 * kv_heads * block_size * head_dim * sizeof(KV's dtype).
 * In memory a block is [layer, k|v, kv_head, block_size, head_dim]. */
uint64_t inf_device_block_bytes(const inf_device_config *config);

/* What computes: "avx512", "avx2", "c" or "cuda". Static storage. */
const char *inf_device_isa(const inf_device *device);

/* ---- the step ---- */

enum {                            /* negative controls for tests */
       INF_STEP_EMPTY_REMOTE = 1, /* remote partials count as empty spans */
       INF_STEP_NO_MASKS = 2,     /* rows are sampled as if they had no mask */
};

typedef struct inf_step_head {
    uint64_t step_id;
    uint64_t peer_timeout_ns; /* longest wait for any one remote partial */
    uint32_t n_seqs, n_tokens, n_blocks, n_spans, n_rows;
    uint32_t flags;
} inf_step_head;

/* One request's share of the step: n_tokens consecutive tokens from position pos0 are computed,
 * their K and V appended to the local blocks. KV of positions [0, local_pos0) lies in the spans, in
 * order and without gap; KV of [local_pos0, pos0 + n_tokens) in the local blocks. Where no layer
 * has a window, what lies before pos0 may be in any order: spans and local blocks then hold
 * together what [0, pos0) holds, and local_pos0 is pos0 less the tokens in the local blocks.
 * local_pos0 is a multiple of block_size, and the local blocks hold at least pos0 + n_tokens -
 * local_pos0 tokens.
 */
typedef struct inf_step_seq {
    uint32_t slot; /* sampling slot, 0..max_seqs-1, opened by slot_open */
    uint32_t token_off, n_tokens;
    uint32_t pos0;
    uint32_t local_pos0;
    uint32_t block_off, n_blocks;
    uint32_t span_off, n_spans;
    uint32_t tag;  /* of the caller's choice; names the request in traces */
    uint32_t wave; /* 0: none; else the local blocks are those of this wave (wave_open) */
} inf_step_seq;

typedef struct inf_step_span {
    uint32_t peer;       /* creditor's peer index */
    uint32_t handle;     /* of the hosted span at the creditor */
    uint32_t generation; /* must match the creditor's */
    uint32_t pos0;       /* position of the span's first token */
    uint32_t n_tokens;   /* multiple of block_size; at most what was moved and acknowledged */
    uint32_t reserved;
} inf_step_span;

/* One row of logits. target < 0: sample by the slot's parameters. target >= 0: no sampling; the log
 * probability of that token is reported (prompt log probabilities). A mask says which tokens may be
 * sampled, one at least; what the slot's parameters say applies to those. max_seqs rows of a step
 * have one at most.
 *
 * A request may sample behind several of its tokens, INF_MAX_DRAFTS + 1 at most, in rows that
 * follow each other. The tokens behind the first such row's are drafts of what is sampled there: a
 * row is what it would be if the text went on with the drafts in front of it. So a row's token
 * counts, and is a part of the text, as long as each draft in front of it is what the row before
 * it sampled. The KV of other drafts is to be overwritten. */
typedef struct inf_step_row {
    uint32_t token; /* index into the step's tokens */
    uint32_t seq;   /* index into the step's seqs */
    int32_t target;
    uint32_t n_top; /* 0..INF_MAX_TOP alternatives to report */
    uint32_t mask;  /* 0: none; n: the step's masks[n - 1], with target < 0 */
} inf_step_row;

/* Log probabilities are of the model's distribution before temperature, penalties and truncation.
 */
typedef struct inf_row_out {
    int32_t token;
    float logprob;
    int32_t rank; /* 1 = most likely */
    uint32_t n_top;
    int32_t top_ids[INF_MAX_TOP]; /* by descending log probability, ties by ascending id */
    float top_logprobs[INF_MAX_TOP];
} inf_row_out;

/* status INF_OK, or the reason for which this request's rows are void; peer says whose fault it is.
 */
typedef struct inf_seq_out {
    int32_t status;
    int32_t peer;
} inf_seq_out;

_Static_assert(sizeof(inf_step_head) == 40, "mirrored in Go");
_Static_assert(sizeof(inf_step_seq) == 44, "mirrored in Go");
_Static_assert(sizeof(inf_step_span) == 24, "mirrored in Go");
_Static_assert(sizeof(inf_step_row) == 20, "mirrored in Go");
_Static_assert(sizeof(inf_row_out) == 176, "mirrored in Go");
_Static_assert(sizeof(inf_seq_out) == 8, "mirrored in Go");

/* Words of a mask: bit i % 32 of word i / 32 allows token i; bits from vocab on mean nothing. */
static inline uint32_t inf_mask_words(int32_t vocab) { return ((uint32_t)vocab + 31) / 32; }

typedef struct inf_step_buffers {
    inf_step_head *head;
    inf_step_seq *seqs;   /* [max_seqs] */
    int32_t *tokens;      /* [max_tokens] */
    int32_t *blocks;      /* [max_step_blocks] */
    inf_step_span *spans; /* [max_step_spans] */
    inf_step_row *rows;   /* [max_rows] */
    uint32_t *masks;      /* [max_seqs, inf_mask_words(vocab)] */
    inf_row_out *row_out; /* [max_rows], output */
    inf_seq_out *seq_out; /* [max_seqs], output */
} inf_step_buffers;

int inf_device_buffers(inf_device *device, inf_step_buffers *out, inf_err *err);

/* Checks the whole input (INF_EINVAL loses nothing) and starts the step. */
int inf_device_submit(inf_device *device, inf_err *err);

/* Waits for the step. INF_OK: the outputs are there; single requests may have failed (seq_out).
 * INF_AGAIN: timeout_ns passed and the step goes on. INF_EIO: the device itself failed, in this
 * step or in work for others beside it; nothing of the step counts, and the device can only be
 * closed. */
int inf_device_wait(inf_device *device, int64_t timeout_ns, inf_err *err);

/* ---- sampling slots ---- */

typedef struct inf_sampling {
    float temperature; /* 0: greedy */
    float top_p;       /* (0, 1] */
    float min_p;       /* [0, 1) */
    float repetition;  /* > 0, 1: none */
    float presence, frequency;
    int32_t top_k; /* 0: all */
    uint32_t reserved;
    uint64_t seed; /* the draw for a position depends on (seed, position) alone */
} inf_sampling;

_Static_assert(sizeof(inf_sampling) == 40, "mirrored in Go");

/* Prepares a slot for a request. tokens[n_tokens] is its text so far, the first n_prompt the
 * prompt: penalties count from it. Sampled tokens are counted by the step itself. */
int inf_device_slot_open(inf_device *device, uint32_t slot, const inf_sampling *sampling,
                         const int32_t *tokens, int64_t n_tokens, int64_t n_prompt,
                         const int32_t *bias_ids, const float *bias, int32_t n_bias, inf_err *err);

/* ---- hosted spans: KV blocks of other instances' requests in this pool ---- */

/* Opens span handle at generation for owner (a peer index), or extends it: blocks is the whole
 * list, whose beginning may not change. Blocks count as readable once the owner's move has filled
 * them. */
int inf_device_span_set(inf_device *device, uint32_t owner, uint32_t handle, uint32_t generation,
                        const int32_t *blocks, int32_t n_blocks, inf_err *err);

/* Opens span handle at generation for owner over blocks that hold their KV already, those of
 * requests or of the cache here: they are readable at once, and no move writes to them. The caller
 * keeps them as they are until the span is closed. A span that is open: INF_EINVAL. */
int inf_device_span_share(inf_device *device, uint32_t owner, uint32_t handle, uint32_t generation,
                          const int32_t *blocks, int32_t n_blocks, inf_err *err);

/* ---- waves: blocks that others read while steps here fill them ----
 *
 * A long prompt is cut into chunks that several instances compute at the same time: each asks those
 * before it for partials over what they have computed, layer by layer, and is a layer behind them.
 * What an instance computes of one prompt is a wave there: a list of blocks that the steps of one
 * request fill from the front without a gap, chunk after chunk.
 *
 *   wave_open -> span_wave for each peer -> { steps whose seq names the wave } -> wave_close
 *
 * A peer that asks for more tokens than are there in its layer is answered once they are. It is
 * refused, as with a stale span, if that takes longer than the wave's patience; if the wave has
 * failed; if the wave or the span is closed. patience_ns is less than the peers' peer_timeout_ns,
 * or they give this instance up before.
 *
 * Of the steps of a wave:
 *  1. One seq of a step names the wave at most, and the local tokens before its own are those that
 *     the wave has; before the wave's first step the caller has seen to them (a cached prefix), and
 *     peers may read them from then on. Its blocks are the wave's: where two lists, of steps or of
 *     spans, name a block at the same place it is the same one.
 *  2. local_pos0 is pos0 less the local tokens before it, and the spans stand for all that lies
 *     with others, whatever its order in the text: without windows attention does not care.
 *  3. A seq that fails (seq_out), or a step that does, fails its wave for good. What was full in
 *     all layers before that step stays readable, and nothing more becomes so; later steps that
 *     name the wave are computed as any.
 *
 * A wave is opened by the number of the caller's choice, 1..INF_MAX_WAVES. INF_EINVAL: it is open.
 * INF_EUNSUPPORTED: K and V are not in this host's memory when a layer's operation returns (a GPU,
 * tensor parallel ranks), a layer of the model has a window, or the device runs no steps. */
int inf_device_wave_open(inf_device *device, uint32_t wave, uint64_t patience_ns, inf_err *err);

/* Opens span handle at generation for owner over the wave's blocks, which the wave's steps fill in
 * the order of the list; no move writes to them. Spans for several owners may be over the same
 * blocks. A span that is open, a wave that is not, other blocks than the wave's: INF_EINVAL. */
int inf_device_span_wave(inf_device *device, uint32_t owner, uint32_t handle, uint32_t generation,
                         const int32_t *blocks, int32_t n_blocks, uint32_t wave, inf_err *err);

/* Ends the wave, whose number may be opened again. Its spans become shared ones (span_share) of the
 * blocks that are full in all layers; who waits for more is refused. INF_EINVAL: it is not open, or
 * a step with it was submitted and is not over. */
int inf_device_wave_close(inf_device *device, uint32_t wave, inf_err *err);

/* Ends the span; on return nobody reads or writes its blocks any more. Unknown or stale:
 * INF_ESTALE. */
int inf_device_span_close(inf_device *device, uint32_t handle, uint32_t generation, inf_err *err);

/* ---- moves: own blocks into a span that a peer hosts ---- */

/* Copies blocks[n] to the peer's span from its block index first on, beside the steps. */
int inf_device_move_post(inf_device *device, uint32_t peer, uint32_t handle, uint32_t generation,
                         uint32_t first, const int32_t *blocks, int32_t n, uint64_t ticket,
                         inf_err *err);

typedef struct inf_move_done {
    uint64_t ticket;
    int32_t status; /* INF_OK: every block is readable at the peer. INF_EIO, INF_ETIMEOUT: this
                       device could not read them, or not copy them in time; the peer lives. */
    int32_t reserved;
} inf_move_done;

/* The next finished move; INF_AGAIN after timeout_ns. */
int inf_device_move_wait(inf_device *device, int64_t timeout_ns, inf_move_done *out, inf_err *err);

/* ---- peers ---- */

/* Client ends towards a creditor: from now on steps may name spans there. The query link has
 * INF_QUERY_SLOTS or more: of a step in halves a message of each half is on its way while one more
 * was answered and is not released yet, or is being written. */
enum { INF_QUERY_SLOTS = 3 };
int inf_device_peer_attach(inf_device *device, uint32_t peer, inf_link *query, inf_link *move,
                           inf_err *err);

/* Server ends of a debtor's links: its queries and moves are answered from now on. */
int inf_device_peer_serve(inf_device *device, uint32_t peer, inf_link *query, inf_link *move,
                          inf_err *err);

/* Registers the pool with an RDMA device ahead of its first link, which would wait for it: a large
 * pool takes seconds. domain is that of the links. INF_EUNSUPPORTED and why, where moves will
 * travel in messages. */
int inf_device_share_pool(inf_device *device, const char *rdma_device, const char *domain,
                          inf_err *err);

enum { INF_MAX_RAILS = 8 }; /* move lanes of a peer in one direction */

/* One more move lane of a peer that is attached (server 0) or served (server 1), its rail 1 to
 * INF_MAX_RAILS - 1; rail 0 came with the query lane. Moves spread over all rails. One that dies is
 * taken away, and what was under way on it goes over the others; it may be given anew, and then
 * takes the place of an old one whose end has not been seen here. May take a second. */
int inf_device_peer_rail(inf_device *device, uint32_t peer, uint32_t rail, uint32_t server,
                         inf_link *move, inf_err *err);

/* How moves travel to and from a peer. Bit k stands for rail k. */
typedef struct inf_peer_rails {
    uint32_t out, in; /* rails that live */
    uint32_t puts;    /* of out: bytes go from pool to pool, else in messages */
    uint32_t reserved;
    char no_puts[240]; /* why the pool could not be registered, "" if it could or need not */
} inf_peer_rails;

_Static_assert(sizeof(inf_peer_rails) == 256, "inf_peer_rails is mirrored in Go");

int inf_device_peer_rails(inf_device *device, uint32_t peer, inf_peer_rails *out, inf_err *err);

/* Ends everything with the peer; pending waits on it fail with INF_EPEER. */
int inf_device_peer_detach(inf_device *device, uint32_t peer, inf_err *err);

/* INF_OK while all links of the peer live, else why not. */
int inf_device_peer_status(inf_device *device, uint32_t peer, inf_err *err);

/* INF_OK, or INF_EIO and why: the device has failed for good in what it did for others. A step that
 * runs then ends with that too, so this is for an instance that runs none. */
int inf_device_fault(inf_device *device, inf_err *err);

/* Largest message of the query and the move lane, for the links' slot_bytes. The two depend on
 * the config alone, so both ends of a link compute the same. */
uint64_t inf_device_query_slot_bytes(const inf_device_config *config);
uint64_t inf_device_move_slot_bytes(const inf_device_config *config);

/* Counters since open, for metrics. */
typedef struct inf_device_stats {
    uint64_t steps, tokens;
    uint64_t query_messages, query_rows, query_bytes;    /* sent */
    uint64_t served_messages, served_rows, served_bytes; /* answered */
    uint64_t moved_blocks, moved_bytes;                  /* sent */
    uint64_t refused_messages;                           /* malformed, stale or out of bounds */
    uint64_t remote_wait_ns, step_ns;
    uint64_t served_batches; /* calls that answered messages, of several debtors perhaps */
    uint64_t halved_steps;   /* that were computed in halves */
    uint64_t kept_messages;  /* that waited for what a wave had not computed yet */
} inf_device_stats;

int inf_device_stats_read(inf_device *device, inf_device_stats *out);

#ifdef __cplusplus
}
#endif
#endif
