/* Answering another instance's queries with the kv heads of several ranks.
 *
 * Queries and partials are [rows, heads, head_dim] of all heads, and a rank's kernels take and give
 * those of its own without gaps. So each rank has a copy of its columns, and its partials are put
 * back among the others'. That is rows * heads * head_dim numbers each way beside a read of the
 * spans, which are thousands of times larger. A GPU that reads and writes messages where they lie
 * would save these copies; at a home, whose step waits for them, it does (step.c).
 *
 * On GPUs an answer is done on return, so each rank has a thread of a team, and the ranks work at
 * the same time. On the CPU the ranks share the lane's own team, and take turns. */
#include <stdlib.h>
#include <string.h>

#include "kernels/tp/tp.h"

typedef struct tp_answer {
    inf_pool *team;                             /* NULL: one rank after the other */
    float *q[INF_MAX_RANKS], *o[INF_MAX_RANKS]; /* [max_rows, heads / n, head_dim] */
    float *lse[INF_MAX_RANKS];                  /* [max_rows, heads / n] */
    inf_attn *args[INF_MAX_RANKS];              /* [max_segments] */
    /* the messages in work */
    tp_lane *lane;
    const inf_attn *asked;
    int32_t n;
    int status[INF_MAX_RANKS];
    inf_err err[INF_MAX_RANKS];
} tp_answer;

void inf_tp_answer_close(tp_lane *l) {
    tp_answer *a = l->answer;
    if (a == NULL) {
        return;
    }
    inf_pool_close(a->team);
    for (int32_t r = 0; r < l->n; r++) {
        free(a->q[r]);
        free(a->o[r]);
        free(a->lse[r]);
        free(a->args[r]);
    }
    free(a);
    l->answer = NULL;
}

int inf_tp_answer_open(tp_lane *l, const inf_lane_config *config, inf_err *err) {
    size_t heads = (size_t)config->max_rows * (size_t)(l->dims.heads / l->n);
    size_t row = heads * (size_t)l->dims.head_dim;
    tp_answer *a = l->answer = calloc(1, sizeof *a);
    int ok = a != NULL;
    for (int32_t r = 0; ok && r < l->n; r++) {
        a->q[r] = calloc(row, sizeof(float));
        a->o[r] = calloc(row, sizeof(float));
        a->lse[r] = calloc(heads, sizeof(float));
        a->args[r] = calloc((size_t)config->max_segments, sizeof(inf_attn));
        ok = a->q[r] && a->o[r] && a->lse[r] && a->args[r];
    }
    if (ok && !l->backend->rank[0]->host_memory && inf_pool_open(l->n, &a->team) != INF_OK) {
        a->team = NULL;
        ok = 0;
    }
    if (!ok) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate a lane for %d rows",
                        config->max_rows);
    }
    inf_pool_stay_awake(a->team, l->backend->base.awake_ns);
    return INF_OK;
}

/* Columns of [rows, stride] to or from [rows, n] without gaps. */
static void take_columns(float *to, const float *from, size_t rows, size_t n, size_t stride) {
    for (size_t i = 0; i < rows; i++) {
        memcpy(to + i * n, from + i * stride, n * sizeof(float));
    }
}

static void put_columns(float *to, const float *from, size_t rows, size_t n, size_t stride) {
    for (size_t i = 0; i < rows; i++) {
        memcpy(to + i * stride, from + i * n, n * sizeof(float));
    }
}

/* args[i] is about the same rows as the one before it. */
static int goes_on(const inf_attn *args, int32_t i) { return i > 0 && args[i].o == args[i - 1].o; }

/* The messages as the rank sees them; its queries are taken on the way. */
static void put_args(tp_answer *a, int32_t rank) {
    const tp_lane *l = a->lane;
    size_t heads = (size_t)(l->dims.heads / l->n), dim = (size_t)l->dims.head_dim, at = 0;
    for (int32_t i = 0; i < a->n; i++) {
        inf_attn *mine = &a->args[rank][i];
        *mine = a->asked[i];
        if (goes_on(a->asked, i)) {
            mine->q = mine[-1].q;
            mine->o = mine[-1].o;
            mine->lse = mine[-1].lse;
        } else {
            float *q = a->q[rank] + at * heads * dim;
            take_columns(q, a->asked[i].q + (size_t)rank * heads * dim, (size_t)mine->rows,
                         heads * dim, (size_t)l->dims.heads * dim);
            mine->q = q;
            mine->o = a->o[rank] + at * heads * dim;
            mine->lse = a->lse[rank] + at * heads;
            at += (size_t)mine->rows;
        }
        mine->heads = (int32_t)heads;
        mine->pool = l->backend->pool.part[rank];
        mine->kv = &l->rank_kv;
    }
}

/* The rank's partials among the others'. */
static void give(const tp_answer *a, int32_t rank) {
    const tp_lane *l = a->lane;
    size_t heads = (size_t)(l->dims.heads / l->n), dim = (size_t)l->dims.head_dim;
    size_t all = (size_t)l->dims.heads, first = (size_t)rank * heads;
    for (int32_t i = 0; i < a->n; i++) {
        const inf_attn *mine = &a->args[rank][i], *whole = &a->asked[i];
        if (!goes_on(a->asked, i)) {
            put_columns(whole->o + first * dim, mine->o, (size_t)mine->rows, heads * dim,
                        all * dim);
            put_columns(whole->lse + first, mine->lse, (size_t)mine->rows, heads, all);
        }
    }
}

static void answer_rank(void *arg, int32_t rank, int32_t thread) {
    tp_answer *a = arg;
    tp_lane *l = a->lane;
    (void)thread;
    put_args(a, rank);
    a->status[rank] = l->ops->answer(l->rank[rank], a->args[rank], a->n, &a->err[rank]);
    if (a->status[rank] == INF_OK) {
        give(a, rank);
    }
}

/* As many args as the lane has room for, the spans of the same rows together; 0: not even those of
 * the first rows. */
static int32_t fitting(const tp_lane *l, const inf_attn *args, int32_t n) {
    int64_t rows = 0;
    int32_t whole = 0;
    for (int32_t i = 0; i < n; i++) {
        if (!goes_on(args, i)) {
            whole = i;
            rows += args[i].rows;
        }
        if (i == l->max_segments || rows > l->max_rows) {
            return whole;
        }
    }
    return n;
}

static int answer_part(tp_lane *l, const inf_attn *args, int32_t n, inf_err *err) {
    tp_answer *a = l->answer;
    a->lane = l;
    a->asked = args;
    a->n = n;
    inf_pool_run(a->team, answer_rank, a, l->n);
    for (int32_t r = 0; r < l->n; r++) {
        if (a->status[r] != INF_OK) {
            return inf_fail(err, a->status[r], a->err[r].instance, a->err[r].layer, "rank %d: %s",
                            r, a->err[r].message);
        }
    }
    return INF_OK;
}

/* The messages of several debtors may have more rows than one may have. */
int inf_tp_answer(inf_lane *lane, const inf_attn *args, int32_t n, inf_err *err) {
    tp_lane *l = (tp_lane *)(void *)lane;
    for (int32_t at = 0; at < n;) {
        int32_t part = fitting(l, args + at, n - at);
        if (part == 0) {
            return inf_fail(err, INF_EINVAL, -1, args[at].layer,
                            "a span of %d rows and %u tokens exceeds what the lane holds",
                            args[at].rows, args[at].n_tokens);
        }
        int status = answer_part(l, args + at, part, err);
        if (status != INF_OK) {
            return status;
        }
        at += part;
    }
    return INF_OK;
}
