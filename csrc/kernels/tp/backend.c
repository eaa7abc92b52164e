/* Tensor parallelism inside an instance: one backend made of n, its ranks.
 *
 * The model is cut as Megatron-LM cuts it. Rank r has the r-th part of the query heads, of the kv
 * heads and of intermediate: these rows of Q, K, V, gate and up, and these columns of o and down.
 * So a layer needs two sums over the ranks, of what o and down give, and all else is either a
 * rank's own (heads, attention, gated) or done by all alike (embedding, norms, the residual stream,
 * which is therefore the same on all):
 *
 *     every rank      h = norm(x)                            [rows, hidden]
 *     rank r          q, k, v of its heads, attention        [rows, heads / n, head_dim]
 *     rank r          o_r = o[:, its heads] attention        [rows, hidden]
 *     all             o = sum_r o_r                          2 (n - 1) / n rows hidden numbers each
 *     every rank      x += o, h = norm(x)
 *     ...             the same with gate | up and down
 *     rank r          logits of its share of the vocabulary  [rows, share], f32
 *     rank 0          all logits, gathered; the tokens       [rows, vocab]
 *
 * Of a layer with experts each rank has its part of every expert, as of gate | up and down, and the
 * whole router: h has the same bits on all, so all choose the same experts, and what they give is
 * summed as down's output is.
 *
 * The LM head is cut by rows of the vocabulary, which need not be a multiple of the ranks
 * (inf_share_of); an embedding that serves as the head is whole on every rank, and each reads its
 * share of it. Sampling is rank 0's alone. Embedding and norms are on every rank.
 *
 * model/forward.c is the program of a rank: its products have a rank's shapes (inf_backend.ranks),
 * and this backend does each operation on all ranks. A device pointer of the model's is a record of
 * n pointers here. Only product_norm does more: product, sum, norm; and product of logits, which
 * are gathered.
 *
 * The pool. A rank's pool has as many blocks as the model's, each with the rank's kv heads: block b
 * of the model is block b of all ranks. On the wire and in host memory a block is [layer, k|v,
 * kv_head, block_size, head_dim] of all heads, whatever n is, so instances that are cut differently
 * exchange blocks; a rank's part are n-th parts of the block's rows (layer, k|v). Queries and
 * partials of other instances have all heads too, and each rank takes the columns of its own.
 *
 * Operations on GPUs are launches of a few microseconds each, n times as many as a GPU has work
 * for. So each rank has a thread, which stays awake between operations, and an operation is asked
 * for on all ranks at once; where CPUs are scarce (inf_backend.awake_ns is 0), and on the CPU,
 * whose ranks share the lane's threads, the caller asks the ranks in turn. NCCL is asked by the
 * caller alone, for a sum or a gather on all ranks as one group. Recordings would take less, but
 * steps of several ranks are not recorded: NCCL's user guide warns of deadlocks where one thread
 * launches graphs that hold sums of several GPUs. Answers to other instances wait for the device
 * within the operation, so there each rank has a thread in any case: answer.c.
 *
 * Failures. A rank that is lost, or one that never comes to a sum, keeps the others in it, and
 * whoever waits for them; a gather is a sum in all this. So the sum has a deadline and a thread
 * that keeps it (cuda/team.h), those that wait for a rank look at all of them, and nothing that
 * waits for a GPU unconditionally, as an allocation may, is asked of it before its sums are over
 * (tp.h, gate). Where a GPU does not come to an end even then, an instance that is closed leaves
 * its memory to it (tp.h, busy). An instance is lost with its first rank, which is the one that is
 * reported. */
#include <stdlib.h>

#include "kernels/tp/tp.h"

static void close_ranks(inf_backend *const *ranks, int32_t n) {
    for (int32_t r = 0; r < n; r++) {
        ranks[r]->ops->close(ranks[r]);
    }
}

static void tp_close(inf_backend *backend) {
    tp_backend *b = (tp_backend *)backend;
    if (inf_tp_busy(b)) { /* ranks let go of pinned pages, which waits */
        return;
    }
    close_ranks(b->rank, b->n);
    (void)pthread_mutex_destroy(&b->gate);
    free(b);
}

static int check(inf_backend *const *ranks, int32_t n, const inf_device_config *c, inf_err *err) {
    if (n < 2 || n > INF_MAX_RANKS) {
        return inf_fail(err, INF_EINVAL, -1, -1, "cannot make an instance of %d ranks; 2 to %d", n,
                        INF_MAX_RANKS);
    }
    if (c->heads % n != 0 || c->kv_heads % n != 0 || c->intermediate % n != 0 ||
        c->expert_intermediate % n != 0 || c->shared_intermediate % n != 0) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "cannot cut %d heads, %d kv heads and intermediate sizes of %d, %d and %d "
                        "over %d ranks",
                        c->heads, c->kv_heads, c->intermediate, c->expert_intermediate,
                        c->shared_intermediate, n);
    }
    for (int32_t r = 0; r < n; r++) {
        if (ranks[r]->ranks != 1 || ranks[r]->ops->close != ranks[0]->ops->close ||
            ranks[r]->ops->collective_open == NULL) {
            return inf_fail(err, INF_EUNSUPPORTED, -1, -1,
                            "cannot add up over ranks of the %s backend", ranks[r]->name);
        }
    }
    return INF_OK;
}

int inf_backend_tp(inf_backend *const *ranks, int32_t n, const inf_device_config *config,
                   inf_backend **out, inf_err *err) {
    *out = NULL;
    int status = check(ranks, n, config, err);
    tp_backend *b = status == INF_OK ? calloc(1, sizeof *b) : NULL;
    if (b == NULL || pthread_mutex_init(&b->gate, NULL) != 0) {
        free(b);
        close_ranks(ranks, n);
        return status != INF_OK ? status
                                : inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate a backend");
    }
    for (int32_t r = 0; r < n; r++) {
        b->rank[r] = ranks[r];
    }
    b->n = n;
    b->ops = ranks[0]->ops;
    b->base = *ranks[0];
    b->base.ops = &b->table;
    b->base.ranks = n;
    b->base.host_memory = 0; /* not where the model's pointers point */
    b->table.close = tp_close;
    inf_tp_memory_table(&b->table, b->ops);
    inf_tp_lane_table(&b->table);
    inf_tp_step_table(&b->table, b->ops);
    *out = &b->base;
    return INF_OK;
}
