/* Answering another instance's queries: partials of its rows over the spans that lie here.
 *
 * The spans of all messages are segments of one plan, so all requests, and all spans of each, run
 * in the same launches; the merge of a row's parts is that of its spans too. Queries are
 * read from the messages where these are pinned, and narrowed on the way (runs.cu). Partials are
 * written where the messages want them by the kernel that computes them, if one does: between a
 * query and its answer each kernel that is not there saves as much as the wire takes.
 *
 * Debtors are in different layers when they ask, and a launch is of one. But a layer of a block is
 * a block of a pool with one layer, since layers lie one behind the other in it: layer i of block b
 * is block b * layers + i of that pool. So an answer's lane has the pool as one of a single layer
 * too (answer_pool), and only the window divides launches.
 *
 * But most batches are of one layer, and followed by the same for the next layer: a debtor's step.
 * These name blocks as they are, so that what the device has been told of one (segments, blocks and
 * plan, which grow with the context) holds for the others and is not told again. What was told is
 * kept and compared, whoever asks: handles and generations would not do, since spans grow.
 *
 * A batch is what one plan takes: a window, max_rows rows over all of its segments, and max_blocks
 * entries of block lists. More than that is answered in several batches, and a request whose spans
 * are cut that way is merged. */
#include <string.h>

#include "kernels/cuda/lane.h"

bool answer_pool(inf_lane *l) {
    uint64_t layer = l->kv.block_bytes / (uint64_t)l->kv.layers;
    if ((int64_t)l->dims.num_blocks * l->kv.layers > INT32_MAX ||
        layer != inf_kv_offset(&l->kv, 1, 0, 0, 0)) {
        return false;
    }
    l->kv_layers = l->kv_layer = l->kv;
    l->kv_layer.layers = 1;
    l->kv_layer.block_bytes = layer;
    return true;
}

/* What of the messages goes into one batch. */
struct answer_batch {
    int32_t first, n;  /* args */
    int32_t rows;      /* of q: the requests' rows, once each */
    int32_t continued; /* 1: the first request's spans began in the batch before */
};

/* Blocks of a span, the last one perhaps in part. */
static uint32_t blocks_of(const inf_lane *l, const inf_attn *a) {
    uint32_t size = (uint32_t)l->kv.block_size;
    return a->n_tokens / size + (a->n_tokens % size != 0);
}

/* As many args from first on as fit. */
static answer_batch next_batch(const inf_lane *l, const inf_attn *args, int32_t n, int32_t first) {
    answer_batch b = {first, 0, 0, first > 0 && args[first].o == args[first - 1].o};
    int64_t segment_rows = 0, blocks = 0;
    int32_t class_of = l->class_of[args[first].layer];
    for (int32_t i = first; i < n && b.n < l->max_segments; i++) {
        int64_t more = blocks_of(l, &args[i]);
        if (segment_rows + args[i].rows > l->max_rows || blocks + more > l->max_blocks ||
            l->class_of[args[i].layer] != class_of) {
            break;
        }
        segment_rows += args[i].rows;
        blocks += more;
        b.rows += i == first || args[i].o != args[i - 1].o ? args[i].rows : 0;
        b.n++;
    }
    return b;
}

/* Does args[i] of the batch begin another request? */
static bool begins(const inf_attn *args, const answer_batch *b, int32_t i) {
    return i == 0 || args[b->first + i].o != args[b->first + i - 1].o;
}

/* One segment per arg; their blocks, whose number this is, lie one behind the other. */
static uint32_t set_segments(inf_lane *l, const inf_attn *args, const answer_batch *b) {
    uint32_t row0 = 0, rows = 0, block = 0;
    for (int32_t i = 0; i < b->n; i++) {
        const inf_attn *a = &args[b->first + i];
        if (begins(args, b, i)) {
            row0 = rows;
            rows += (uint32_t)a->rows;
        }
        l->host_segments[i] = {row0, (uint32_t)a->rows, a->q_pos0, a->kv_pos0, a->n_tokens, block};
        block += blocks_of(l, a);
    }
    return block;
}

static bool one_layer(const inf_attn *args, const answer_batch *b) {
    bool one = true;
    for (int32_t i = 1; i < b->n; i++) {
        one = one && args[b->first + i].layer == args[b->first].layer;
    }
    return one;
}

/* Has the device been told of a batch with these segments and blocks, and of no other since? */
static bool is_known(const inf_lane *l, const inf_attn *args, const answer_batch *b) {
    bool same =
        l->known.n == b->n && l->known.class_of == l->class_of[args[b->first].layer] &&
        memcmp(l->known.segments, l->host_segments, (uint64_t)b->n * sizeof(inf_cuda_segment)) == 0;
    for (int32_t i = 0; i < b->n && same; i++) {
        const inf_attn *a = &args[b->first + i];
        same = memcmp(l->known.blocks + l->host_segments[i].block_off, a->blocks,
                      blocks_of(l, a) * sizeof(int32_t)) == 0;
    }
    return same;
}

/* Segments, blocks and plan into the inbox, and on their way. */
static void tell(inf_lane *l, const inf_attn *args, const answer_batch *b, uint32_t blocks,
                 bool one) {
    int32_t class_of = l->class_of[args[b->first].layer];
    inbox_begin(l);
    uint64_t bytes = (uint64_t)b->n * sizeof(inf_cuda_segment);
    uint32_t *segments = inbox_put(l, l->segments, bytes);
    uint32_t *to = inbox_put(l, l->blocks, (uint64_t)blocks * sizeof(int32_t));
    l->known.n = 0;
    if (segments == NULL || to == NULL) {
        return;
    }
    memcpy(segments, l->host_segments, bytes);
    for (int32_t i = 0; i < b->n; i++) {
        const inf_attn *a = &args[b->first + i];
        uint32_t off = l->host_segments[i].block_off, n = blocks_of(l, a);
        for (uint32_t k = 0; k < n; k++) {
            to[off + k] = (uint32_t)(one ? a->blocks[k] : a->blocks[k] * l->dims.layers + a->layer);
        }
    }
    lane_plan(l, &l->classes[class_of], l->host_segments, b->n, b->rows);
    inbox_send(l);
    l->plans++;
    if (one && l->fault == 0) {
        memcpy(l->known.segments, segments, bytes);
        memcpy(l->known.blocks, to, (uint64_t)blocks * sizeof(int32_t));
        l->known.n = b->n;
        l->known.class_of = class_of;
    }
}

/* Whether a request's rows go where its message wants them, and where the GPU sees that. Attention
 * writes 16 bytes at a time. */
static bool in_place(const inf_lane *l, const inf_attn *a, inf_cuda_place *place) {
    *place = {a->o, a->lse};
    return lane_sees(l, a->rows, l->dims.heads, &place->o, &place->lse) &&
           (uintptr_t)place->o % 16 == 0;
}

/* Where the rows of a request of the batch, of which row0 is the first, are to go: there, or to
 * staging, which give_staged empties after a sync. */
static inf_cuda_place place_for(inf_lane *l, const inf_attn *a, uint32_t row0) {
    inf_cuda_place p;
    bool direct = in_place(l, a, &p);
    lane_count(l, a->rows, direct);
    if (!direct) {
        p = {l->staging + (uint64_t)row0 * (uint64_t)l->q_dim,
             l->staging_lse + (uint64_t)row0 * (uint64_t)l->dims.heads};
    }
    return p;
}

/* Queries to l->q, narrowed: from where they lie if that is pinned, else by way of staging. placed:
 * and each row's place to l->places. Queries in staging are read before answers are put there: that
 * is the attention's, which waits for all of these. */
static void fetch_queries(inf_lane *l, const inf_attn *args, const answer_batch *b, bool placed) {
    inf_cuda_fetch p = {};
    p.dst = l->q;
    p.places = placed ? l->places : NULL;
    p.dtype = l->act;
    p.heads = l->dims.heads;
    p.head_dim = l->dims.head_dim;
    p.early = l->backend->early_rows;
    auto flush = [&] {
        lane_ok(l, inf_cuda_fetch_launch(&p, l->stream), "queries");
        p.runs.n = p.runs.rows = 0;
    };
    uint32_t row0 = 0;
    for (int32_t i = 0; i < b->n; i++) {
        const inf_attn *a = &args[b->first + i];
        if (!begins(args, b, i)) {
            continue;
        }
        float *at = (float *)a->q;
        if (!lane_direct(l, a->rows, l->dims.heads, &at, NULL)) {
            at = l->staging + (uint64_t)row0 * (uint64_t)l->q_dim;
            memcpy(at, a->q, (uint64_t)a->rows * (uint64_t)l->q_dim * sizeof(float));
        }
        add_run(&p.runs, row0, a->rows, at, NULL, l->dims.heads, flush);
        if (placed) {
            p.answer[p.runs.n - 1] = place_for(l, a, row0);
        }
        row0 += (uint32_t)a->rows;
    }
    flush();
}

/* The last request of the batch goes on in the next one: keeps its partial. */
static void keep_last(inf_lane *l, const answer_batch *b, int32_t rows) {
    uint64_t at = (uint64_t)(b->rows - rows), heads = (uint64_t)l->dims.heads;
    uint64_t row = (uint64_t)l->q_dim, n = (uint64_t)rows;
    lane_copy(l, l->o2, l->o32 + at * row, n * row * sizeof(float), cudaMemcpyDeviceToDevice);
    lane_copy(l, l->lse2, l->lse + at * heads, n * heads * sizeof(float), cudaMemcpyDeviceToDevice);
}

/* Partials from o32 and lse on their way to their places. Where a request goes on they are
 * overwritten by the next batch. */
static void give_partials(inf_lane *l, const inf_attn *args, const answer_batch *b) {
    inf_cuda_give p = {};
    p.src = l->o32;
    p.src_lse = l->lse;
    p.dtype = INF_DTYPE_F32;
    p.heads = l->dims.heads;
    p.head_dim = l->dims.head_dim;
    p.early = l->backend->early_rows;
    auto flush = [&] {
        lane_ok(l, inf_cuda_give_launch(&p, l->stream), "partials");
        p.runs.n = p.runs.rows = 0;
    };
    uint32_t row0 = 0;
    for (int32_t i = 0; i < b->n; i++) {
        const inf_attn *a = &args[b->first + i];
        if (!begins(args, b, i)) {
            continue;
        }
        inf_cuda_place at = place_for(l, a, row0);
        add_run(&p.runs, row0, a->rows, at.o, at.lse, l->dims.heads, flush);
        row0 += (uint32_t)a->rows;
    }
    flush();
}

/* The batch's partials, to their places by attention itself where it can. A request that goes on
 * from the batch before is merged with what was computed there, which is in o2 and lse2. */
static void run_batch(inf_lane *l, const inf_attn *args, const answer_batch *b, bool goes_on) {
    class_lists *c = &l->classes[l->class_of[args[b->first].layer]];
    bool one = one_layer(args, b);
    uint32_t blocks = set_segments(l, args, b);
    if (!one || !is_known(l, args, b)) {
        tell(l, args, b, blocks, one);
    }
    l->kv = one ? l->kv_layers : l->kv_layer;
    bool placed = !b->continued && !goes_on && l->fault == 0 && lane_places(l, c);
    fetch_queries(l, args, b, placed);
    attend_to to = {l->o32, INF_DTYPE_F32, l->lse, placed ? l->places : NULL, false};
    lane_attend(l, c, one ? args[b->first].layer : 0, l->q, &to, b->rows, false);
    if (placed) {
        l->placed += (uint64_t)b->rows;
        return;
    }
    if (b->continued) {
        inf_cuda_merge m = {{},
                            l->o32,
                            l->lse,
                            NULL,
                            0,
                            b->rows,
                            l->dims.heads,
                            l->dims.head_dim,
                            l->backend->early_rows};
        (void)inf_cuda_runs_add(&m.runs, 0, args[b->first].rows, l->o2, l->lse2, l->dims.heads);
        lane_ok(l, inf_cuda_merge_launch(&m, l->stream), "merge");
    }
    if (goes_on) {
        keep_last(l, b, args[b->first + b->n - 1].rows);
    }
    give_partials(l, args, b);
}

static void give_staged(const inf_lane *l, const inf_attn *args, const answer_batch *b) {
    uint64_t heads = (uint64_t)l->dims.heads, q = (uint64_t)l->q_dim, row0 = 0;
    for (int32_t i = 0; i < b->n; i++) {
        const inf_attn *a = &args[b->first + i];
        uint64_t rows = (uint64_t)a->rows;
        if (!begins(args, b, i)) {
            continue;
        }
        inf_cuda_place there;
        if (!in_place(l, a, &there)) {
            memcpy(a->o, l->staging + row0 * q, rows * q * sizeof(float));
            memcpy(a->lse, l->staging_lse + row0 * heads, rows * heads * sizeof(float));
        }
        row0 += rows;
    }
}

int inf_cuda_answer(inf_lane *l, const inf_attn *args, int32_t n, inf_err *err) {
    lane_enter(l);
    for (int32_t first = 0; first < n;) {
        answer_batch b = next_batch(l, args, n, first);
        if (b.n == 0) {
            return inf_fail(err, INF_EINVAL, -1, args[first].layer,
                            "a span of %d rows and %u tokens exceeds what the lane holds",
                            args[first].rows, args[first].n_tokens);
        }
        int32_t next = first + b.n;
        run_batch(l, args, &b, next < n && args[next].o == args[next - 1].o);
        int status = lane_sync(l, err);
        if (status != INF_OK) {
            return status;
        }
        give_staged(l, args, &b);
        first = next;
    }
    return INF_OK;
}
