/* Attention of a step or of an answer: its plan, which goes to the device by the inbox, and the
 * launches that do what the plan says. */
#include <string.h>

#include "kernels/cuda/lane.h"

void lane_plan(inf_lane *l, class_lists *c, const inf_cuda_segment *segments, int32_t n_segments,
               int32_t rows) {
    inf_cuda_plan_shape shape = l->shape;
    inf_cuda_plan_lists lists = {};
    shape.window = c->window;
    lists.decode = l->plan_decode;
    lists.prefill = l->plan_prefill;
    lists.off = l->plan_off;
    lists.list = l->plan_list;
    int status = inf_cuda_plan(&shape, segments, n_segments, rows, &l->sizes, &lists);
    if (!lane_ok(l, status == INF_OK ? 0 : (int)cudaErrorInvalidValue, "the plan of attention")) {
        return;
    }
    c->n_decode = lists.n_decode;
    c->n_prefill = lists.n_prefill;
    c->n_parts = lists.n_parts;
    c->combine = false;
    for (int32_t i = 0; i < lists.n_prefill && !c->combine; i++) {
        c->combine = lists.prefill[i].part != INF_CUDA_WHOLE;
    }
    struct {
        void *to;
        const void *from;
        uint64_t bytes;
    } parts[] = {{c->decode, lists.decode, (uint64_t)lists.n_decode * sizeof(inf_cuda_work)},
                 {c->prefill, lists.prefill, (uint64_t)lists.n_prefill * sizeof(inf_cuda_work)},
                 {c->off, lists.off, ((uint64_t)rows + 1) * sizeof(uint32_t)},
                 {c->list, lists.list, (uint64_t)lists.n_parts * sizeof(uint32_t)}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        uint32_t *words = inbox_put(l, parts[i].to, parts[i].bytes);
        if (words != NULL && parts[i].bytes > 0) {
            memcpy(words, parts[i].from, parts[i].bytes);
        }
    }
    uint32_t *counts = inbox_put(l, c->counts, 2 * sizeof(int32_t));
    if (counts != NULL) {
        counts[0] = (uint32_t)lists.n_decode;
        counts[1] = (uint32_t)lists.n_prefill;
    }
}

static inf_cuda_attn attn_of(inf_lane *l, const class_lists *c, int32_t layer) {
    inf_cuda_attn a = {};
    a.pool = l->pool;
    a.kv = l->kv;
    a.blocks = l->blocks;
    a.segments = l->segments + l->first_segment;
    a.part_o = l->part_o;
    a.part_lse = l->part_lse;
    a.done = l->done;
    a.off = c->off;
    a.list = c->list;
    a.act = l->act;
    a.heads = l->dims.heads;
    a.layer = layer;
    a.window = c->window;
    a.scale = l->scale;
    a.softcap = l->dims.attn_softcap;
    a.wgmma = l->backend->wgmma;
    a.boxes = l->backend->boxes;
    return a;
}

bool lane_places(inf_lane *l, const class_lists *c) {
    inf_cuda_attn a = attn_of(l, c, 0);
    a.q = l->q;
    a.o_dtype = INF_DTYPE_F32;
    return c->n_prefill == 0 && (c->n_parts == 0 || inf_cuda_attn_decode_takes(&a));
}

void lane_attend(inf_lane *l, const class_lists *c, int32_t layer, const void *q,
                 const attend_to *to, int32_t rows, bool whole) {
    inf_cuda_attn a = attn_of(l, c, layer);
    a.q = q;
    a.o = to->o;
    a.o_dtype = to->o_dtype;
    a.lse = to->lse;
    a.places = to->places;
    a.early = l->backend->early_decode ? 1 + to->own : 0;
    a.rows = rows;
    bool combine = c->combine;
    if (c->n_decode > 0 || whole) {
        a.work = c->decode;
        a.n_work = c->counts;
        a.max_work = whole ? l->sizes.decode : c->n_decode;
        bool takes = inf_cuda_attn_decode_takes(&a);
        int status = takes ? inf_cuda_attn_decode_launch(&a, l->stream)
                           : inf_cuda_attn_plain_launch(&a, l->stream);
        lane_ok(l, status, "decode attention");
        combine = combine || (!takes && (c->n_parts > 0 || whole));
    }
    if (c->n_prefill > 0) {
        a.work = c->prefill;
        a.n_work = c->counts + 1;
        a.max_work = c->n_prefill;
        int status = inf_cuda_attn_prefill_takes(&a) ? inf_cuda_attn_prefill_launch(&a, l->stream)
                                                     : inf_cuda_attn_plain_launch(&a, l->stream);
        lane_ok(l, status, "prefill attention");
    }
    if (combine) {
        inf_cuda_combine m = {to->o,
                              to->lse,
                              l->part_o,
                              l->part_lse,
                              c->off,
                              c->list,
                              to->o_dtype,
                              rows,
                              l->dims.heads,
                              l->dims.head_dim,
                              l->backend->early_rows};
        lane_ok(l, inf_cuda_combine_launch(&m, l->stream), "the merge of partials");
    }
}
