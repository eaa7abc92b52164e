/* Blocks that are shared with other instances where they lie: several owners attend over the same
 * blocks at once, before and after some of them end, and no move writes to any. */
#include "dist_world.h"

static const double TOLERANCE = 1e-5;

/* The request's oldest n blocks come to lie in creditor's blocks theirs, without a move: as if it
 * had computed the same tokens. What was at home becomes NaN. */
static void compute_alike(inst *home, req *r, inst *creditor, const int32_t *theirs, int32_t n) {
    const int32_t *mine = &r->blocks[r->local_pos0 / W_BLOCK];
    w_sync(creditor);
    for (int32_t i = 0; i < n; i++) {
        memcpy(w_block(creditor, theirs[i]), w_block(home, mine[i]), home->kv.block_bytes);
        memset(w_block(home, mine[i]), 0xff, home->kv.block_bytes);
    }
}

static void attend_in(req *r, uint32_t peer, uint32_t handle, uint32_t generation, int32_t n) {
    uint32_t tokens = (uint32_t)n * W_BLOCK;
    r->spans[r->n_spans++] = (inf_step_span){.peer = peer,
                                             .handle = handle,
                                             .generation = generation,
                                             .pos0 = r->local_pos0,
                                             .n_tokens = tokens};
    r->local_pos0 += tokens;
}

static void expect_all(inst *home, req *r, uint64_t id, int32_t status, uint64_t *rng) {
    step *s = malloc(sizeof *s);
    CHECK(s != NULL);
    w_begin(home, s, &r, 1, id);
    for (int32_t l = 0; l < W_LAYERS; l++) {
        w_layer(home, s, &r, l, rng);
        CHECK(s->seq_out[0].status == status);
        CHECK(status != INF_OK || w_error(s, r, 0, l) < TOLERANCE);
    }
    free(s);
}

/* a and c attend over the same blocks of b, each under a handle of its own; a has blocks of its own
 * moved there behind them. */
static void shared(uint32_t provider) {
    enum { N = 5 };
    inst a = w_open(128), b = w_open(128), c = w_open(128);
    w_join(provider, &a, 1, &b, 2);
    w_join(provider, &c, 1, &b, 3);
    uint64_t rng = 77, same = 5, again = 5;
    req *ra = w_req(&a, 60, 2, &same), *rc = w_req(&c, 60, 2, &again);
    inf_err err;
    int32_t theirs[N] = {90, 7, 31, 8, 64};
    compute_alike(&a, ra, &b, theirs, N);
    compute_alike(&c, rc, &b, theirs, N);
    CHECK(inf_dist_span_share(b.d, 2, 4, 1, theirs, N, &err) == INF_OK);
    CHECK(inf_dist_span_share(b.d, 3, 5, 1, theirs, 3, &err) == INF_OK);
    CHECK(inf_dist_span_share(b.d, 2, 4, 1, theirs, N, &err) == INF_EINVAL);
    CHECK(inf_dist_span_share(b.d, 2, W_HANDLES, 1, theirs, N, &err) == INF_EINVAL);
    CHECK(inf_dist_span_share(b.d, 2, 6, 0, theirs, N, &err) == INF_EINVAL);
    attend_in(ra, 1, 4, 1, N);
    attend_in(rc, 1, 5, 1, N); /* more than it was given */
    expect_all(&a, ra, 1, INF_OK, &rng);
    expect_all(&c, rc, 1, INF_ESTALE, &rng);
    CHECK(inf_dist_span_close(b.d, 5, 1, &err) == INF_OK);
    CHECK(inf_dist_span_share(b.d, 3, 5, 2, theirs, N, &err) == INF_OK);
    rc->n_spans = 0;
    rc->local_pos0 = 0;
    attend_in(rc, 1, 5, 2, N);
    expect_all(&c, rc, 2, INF_OK, &rng);

    /* A move into the span is answered as one whose blocks are there, and writes nothing. */
    int32_t mine[2] = {0, 1};
    memset(w_block(&a, 0), 0xff, a.kv.block_bytes);
    memset(w_block(&a, 1), 0xff, a.kv.block_bytes);
    CHECK(inf_dist_move_post(a.d, 1, 4, 1, N - 2, mine, 2, 5, &err) == INF_OK);
    inf_move_done done = w_move_wait(&a);
    CHECK(done.ticket == 5 && done.status == INF_OK);
    CHECK(inf_dist_move_post(a.d, 1, 4, 1, N - 1, mine, 2, 6, &err) == INF_OK);
    done = w_move_wait(&a);
    CHECK(done.ticket == 6 && done.status == INF_ESTALE);
    expect_all(&c, rc, 3, INF_OK, &rng);

    b.next_handle = 1;
    w_lend(&a, ra, &b, 1, 2, 4);
    expect_all(&a, ra, 2, INF_OK, &rng);
    CHECK(inf_dist_span_close(b.d, 4, 1, &err) == INF_OK);
    expect_all(&a, ra, 3, INF_ESTALE, &rng);
    expect_all(&c, rc, 4, INF_OK, &rng);
    free(ra);
    free(rc);
    w_close(&a);
    w_close(&b);
    w_close(&c);
}

int main(void) {
    for (uint32_t provider = INF_PROVIDER_SHM; provider <= INF_PROVIDER_TCP; provider++) {
        shared(provider);
    }
    return 0;
}
