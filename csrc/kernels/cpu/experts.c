/* The MLP of a layer with experts, of one rank (inf_experts; the formula is at inf_device_config).
 *
 *   logits    [rows, experts (+ 1)] = router x, in f32 whatever the weights are
 *   route     the top_k experts of each row and their weights
 *   group     rows of the same expert stand together: place[row, i] of [R, ...], R = rows * top_k
 *   gather    in [R, hidden] = x of the place's row
 *   products  [R, 2 inner] = gate_up_e in, [R, hidden] = down_e (silu(gate) * up): a product for
 *             each expert that has rows, and all of them one run of the threads
 *   combine   y = sum over a row's experts of weight times its place, the likeliest first, and the
 *             shared expert's last
 *
 * Bytes: the weights of the experts that have rows, once. In a decode step of one row these are
 * top_k experts of 3 hidden inner numbers, which memory bounds: with hidden 2048, inner 768 and 8
 * experts they are 1,920 panels of 16 outputs, so that threads have enough to share.
 *
 * A row's sums are those that gemm makes of it alone, and its experts are added up in its own
 * order: what else is in the batch changes neither. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/lane.h"

static int has_shared(const inf_device_config *d) { return d->shared_intermediate > 0; }

void inf_cpu_experts_close(cpu_experts *e) {
    if (e == NULL) {
        return;
    }
    void *all[] = {e->logits,         e->weight,     e->chosen,     e->place,
                   e->first,          e->rows,       e->gate_up,    e->act,
                   e->shared_gate_up, e->shared_act, e->shared_out, e->gemms};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        free(all[i]);
    }
    free(e);
}

int inf_cpu_experts_open(inf_lane *l) {
    const inf_device_config *d = &l->dims;
    size_t rows = (size_t)l->max_rows, hidden = (size_t)d->hidden, experts = (size_t)d->experts;
    size_t all = rows * (size_t)d->experts_per_token, inner = (size_t)d->expert_intermediate;
    size_t shared = (size_t)d->shared_intermediate;
    cpu_experts *e = l->experts = calloc(1, sizeof *e);
    if (e == NULL) {
        return 0;
    }
    e->dims = d;
    e->max_rows = l->max_rows;
    e->first = calloc(experts + 1, sizeof *e->first);
    e->gemms = calloc(experts + 1, sizeof *e->gemms);
    struct {
        void **at;
        size_t bytes;
    } parts[] = {{(void **)&e->logits, rows * (experts + 1) * sizeof(float)},
                 {(void **)&e->weight, all * sizeof(float)},
                 {(void **)&e->chosen, all * sizeof(int32_t)},
                 {(void **)&e->place, all * sizeof(int32_t)},
                 {(void **)&e->rows, all * hidden * sizeof(float)},
                 {(void **)&e->gate_up, all * 2 * inner * sizeof(float)},
                 {(void **)&e->act, all * inner * sizeof(float)},
                 {(void **)&e->shared_gate_up, rows * 2 * shared * sizeof(float)},
                 {(void **)&e->shared_act, rows * shared * sizeof(float)},
                 {(void **)&e->shared_out, shared > 0 ? rows * hidden * sizeof(float) : 0}};
    int ok = e->first != NULL && e->gemms != NULL;
    for (size_t i = 0; ok && i < sizeof parts / sizeof *parts; i++) {
        ok = parts[i].bytes == 0 || (*parts[i].at = inf_cpu_alloc(NULL, parts[i].bytes)) != NULL;
    }
    return ok; /* closing the lane frees what there is */
}

/* ---- routing ---- */

void inf_cpu_route(const float *logits, int32_t ld, int32_t rows, int32_t n, int32_t top_k,
                   int normalise, int32_t *chosen, float *weight) {
    for (int32_t r = 0; r < rows; r++, logits += ld, chosen += top_k, weight += top_k) {
        for (int32_t e = 0; e < n; e++) { /* into its place among the best so far */
            int32_t i = e < top_k ? e : top_k;
            for (; i > 0 && logits[e] > logits[chosen[i - 1]]; i--) {
                if (i < top_k) {
                    chosen[i] = chosen[i - 1];
                }
            }
            if (i < top_k) { /* also where logits are no numbers, top_k are found */
                chosen[i] = e;
            }
        }
        float sum = 0, most = logits[chosen[0]];
        for (int32_t e = 0; !normalise && e < n; e++) {
            sum += expf(logits[e] - most);
        }
        for (int32_t i = 0; i < top_k; i++) {
            weight[i] = expf(logits[chosen[i]] - most);
            sum += normalise ? weight[i] : 0;
        }
        for (int32_t i = 0; i < top_k; i++) {
            weight[i] /= sum;
        }
    }
}

void inf_cpu_group(const int32_t *chosen, int32_t count, int32_t n, int32_t *first,
                   int32_t *place) {
    memset(first, 0, ((size_t)n + 1) * sizeof *first);
    for (int32_t i = 0; i < count; i++) {
        first[chosen[i] + 1]++;
    }
    for (int32_t e = 0; e < n; e++) {
        first[e + 1] += first[e];
    }
    for (int32_t i = 0; i < count; i++) { /* first[e] runs ahead to where e + 1 begins */
        place[i] = first[chosen[i]]++;
    }
    memmove(first + 1, first, (size_t)n * sizeof *first);
    first[0] = 0;
}

static int32_t logits_ld(const inf_device_config *d) { return d->experts + has_shared(d); }

/* One index: one row. */
static void route_task(void *arg, int32_t index, int32_t thread) {
    const cpu_experts *e = arg;
    const inf_device_config *d = e->dims;
    int32_t ld = logits_ld(d), k = d->experts_per_token;
    (void)thread;
    inf_cpu_route(e->logits + (size_t)index * (size_t)ld, ld, 1, d->experts, k,
                  (d->model_flags & INF_MODEL_NORM_TOPK) != 0,
                  e->chosen + (size_t)index * (size_t)k, e->weight + (size_t)index * (size_t)k);
}

static void gather_task(void *arg, int32_t index, int32_t thread) {
    const cpu_experts *e = arg;
    size_t hidden = (size_t)e->dims->hidden;
    int32_t k = e->dims->experts_per_token;
    (void)thread;
    for (int32_t i = index * k; i < (index + 1) * k; i++) {
        memcpy(e->rows + (size_t)e->place[i] * hidden, e->x + (size_t)index * hidden,
               hidden * sizeof(float));
    }
}

static void combine_task(void *arg, int32_t index, int32_t thread) {
    const cpu_experts *e = arg;
    const inf_device_config *d = e->dims;
    size_t hidden = (size_t)d->hidden, k = (size_t)d->experts_per_token, at = (size_t)index * k;
    float *y = e->y + (size_t)index * hidden;
    (void)thread;
    for (size_t i = at; i < at + k; i++) {
        const float *out = e->rows + (size_t)e->place[i] * hidden;
        float weight = e->weight[i];
        for (size_t c = 0; c < hidden; c++) {
            y[c] = i == at ? weight * out[c] : y[c] + weight * out[c];
        }
    }
    if (has_shared(d)) {
        const float *out = e->shared_out + (size_t)index * hidden;
        float logit = e->logits[(size_t)index * (size_t)logits_ld(d) + (size_t)d->experts];
        float weight = 1.0f / (1.0f + expf(-logit));
        for (size_t c = 0; c < hidden; c++) {
            y[c] += weight * out[c];
        }
    }
}

/* ---- the operation ---- */

typedef struct product_of_experts {
    const void *const *w; /* of list */
    float *x, *y;         /* [R, k], [R, n] */
    int32_t k, n;
    inf_gemm shared; /* w NULL: there is none */
} product_of_experts;

static void run_products(inf_lane *l, const product_of_experts *p) {
    const cpu_experts *e = l->experts;
    int32_t n = 0, dtype = ((const cpu_matrix *)p->w[0])->dtype; /* that of all */
    for (int32_t i = 0; i < l->dims.experts; i++) {
        int32_t at = e->first[i], rows = e->first[i + 1] - at;
        if (rows > 0) {
            e->gemms[n++] = (inf_gemm){p->x + (size_t)at * (size_t)p->k,
                                       ((const cpu_matrix *)p->w[i])->packed,
                                       NULL,
                                       p->y + (size_t)at * (size_t)p->n,
                                       rows,
                                       p->n,
                                       p->k,
                                       p->k,
                                       p->n};
        }
    }
    if (p->shared.w != NULL) {
        e->gemms[n] = p->shared;
        e->gemms[n++].w = ((const cpu_matrix *)p->shared.w)->packed;
    }
    l->ops->gemms(l->threads, dtype, e->gemms, n);
}

/* From the grouped rows to what each place's expert and the shared one give. */
static void run_experts(inf_lane *l, const inf_experts *p) {
    const inf_device_config *d = &l->dims;
    cpu_experts *e = l->experts;
    int32_t hidden = d->hidden, inner = d->expert_intermediate, shared = d->shared_intermediate;
    int32_t all = p->rows * d->experts_per_token;
    product_of_experts gate_up = {p->gate_up,
                                  e->rows,
                                  e->gate_up,
                                  hidden,
                                  2 * inner,
                                  {e->x, p->shared_gate_up, NULL, e->shared_gate_up, p->rows,
                                   2 * shared, hidden, hidden, 2 * shared}};
    product_of_experts down = {p->down,
                               e->act,
                               e->rows,
                               inner,
                               hidden,
                               {e->shared_act, p->shared_down, NULL, e->shared_out, p->rows, hidden,
                                shared, shared, hidden}};
    run_products(l, &gate_up);
    l->ops->gate(l->threads, INF_ACT_SILU, e->gate_up, e->gate_up + inner, e->act, all, inner,
                 2 * inner, inner);
    if (has_shared(d)) {
        l->ops->gate(l->threads, INF_ACT_SILU, e->shared_gate_up, e->shared_gate_up + shared,
                     e->shared_act, p->rows, shared, 2 * shared, shared);
    }
    run_products(l, &down);
}

void inf_cpu_experts(inf_lane *l, const inf_experts *p) {
    const inf_device_config *d = &l->dims;
    cpu_experts *e = l->experts;
    int32_t ld = logits_ld(d), hidden = d->hidden;
    e->x = (const float *)p->x + l->row0 * hidden;
    e->y = (float *)p->y + l->row0 * hidden;
    const cpu_matrix *w = p->router;
    inf_gemm router = {e->x, w->packed, NULL, e->logits, p->rows, ld, hidden, hidden, ld};
    l->ops->gemm(l->threads, w->dtype, &router);
    inf_pool_run(l->threads, route_task, e, p->rows);
    inf_cpu_group(e->chosen, p->rows * d->experts_per_token, d->experts, e->first, e->place);
    inf_pool_run(l->threads, gather_task, e, p->rows);
    run_experts(l, p);
    inf_pool_run(l->threads, combine_task, e, p->rows);
}
