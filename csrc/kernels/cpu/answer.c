/* A CPU lane that answers others' queries. */
#include "kernels/cpu/lane.h"

/* Computes n partials into scratch, and merges them into the runs'. */
static void merge_round(inf_lane *l, int32_t n) {
    l->ops->attention(l->threads, l->attn, n);
    for (int32_t i = 0; i < n; i++) {
        const inf_attn *a = &l->attn[i];
        l->ops->merge(l->to_o[i], l->to_lse[i], a->o, a->lse, a->rows, a->heads, l->dims.head_dim);
    }
}

/* The spans of a round of runs: their first ones straight to their places, their second ones into
 * scratch, as many as it holds at a time. Returns the number of spans of later rounds. */
static int32_t answer_round(inf_lane *l, const inf_attn *args, int32_t n, int32_t round) {
    int32_t count = 0, in_run = 0, left = 0;
    size_t rows = 0;
    for (int32_t i = 0; i < n; i++) {
        in_run = i > 0 && args[i].o == args[i - 1].o ? in_run + 1 : 0;
        left += in_run > round;
        if (in_run != round) {
            continue;
        }
        inf_attn a = args[i];
        if (round > 0 && rows + (size_t)a.rows > (size_t)l->max_rows) {
            merge_round(l, count);
            count = 0;
            rows = 0;
        }
        l->to_o[count] = a.o;
        l->to_lse[count] = a.lse;
        if (round > 0) {
            a.o = l->o2 + rows * (size_t)l->q_dim;
            a.lse = l->lse2 + rows * (size_t)l->dims.heads;
            rows += (size_t)a.rows;
        }
        l->attn[count++] = a;
    }
    if (round == 0) {
        l->ops->attention(l->threads, l->attn, count);
    } else {
        merge_round(l, count);
    }
    return left;
}

/* Every run's first span, then the second ones, and so on: the spans of a round run as one parallel
 * batch, and most runs have one. Runs may be of several messages, and of several layers. */
int inf_cpu_answer(inf_lane *l, const inf_attn *args, int32_t n, inf_err *err) {
    (void)err;
    for (int32_t round = 0, left = n; left > 0; round++) {
        left = answer_round(l, args, n, round);
    }
    return INF_OK;
}
