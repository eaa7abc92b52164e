/* A creditor that lies: raw links against an instance whose requests have spans there and at an
 * honest creditor. Valid partials and acknowledgements with mutations, replays and early deaths,
 * over both providers. A partial that is accepted was equal to the valid one in all that is checked
 * and is merged bit by bit; any other costs the requests that needed it, ends that peer's links and
 * is counted. The honest creditor's request is right in every step, and the pool never changes.
 *
 *   test_wire_home [messages per provider] [seed] */
#include "wire_raw.h"

static uint64_t messages = 4000 / RAW_SHARE, seed = 1;

enum { HONEST = 2, HOSTILE = 1, BLOCKS = 96, N_REQS = 3 };

typedef struct {
    uint32_t provider;
    inst home, other;
    inf_link *lane[2];
    uint8_t *pool; /* what the home's pool must hold */
    req *r[N_REQS];
    uint64_t rng, refused, accepted, deaths, id;
    step s;
    float o[W_TOKENS * W_ROW], lse[W_TOKENS * W_HEADS];
    raw_msg msg, valid, old;
} home;

static void connect_creditor(home *w) {
    inf_link *c[2];
    inf_err err;
    w_lanes(w->provider, &w->home, c, w->lane);
    CHECK(inf_dist_peer_attach(w->home.d, HOSTILE, c[0], c[1], &err) == INF_OK);
}

static void disconnect_creditor(home *w) {
    inf_err err;
    inf_dist_end(w->home.d);
    CHECK(inf_dist_peer_detach(w->home.d, HOSTILE, &err) == INF_OK);
    inf_link_close(w->lane[0]);
    inf_link_close(w->lane[1]);
}

static void check_counts(home *w) {
    inf_device_stats s = {0};
    inf_dist_stats(w->home.d, &s);
    CHECK(s.refused_messages == w->refused);
    CHECK(memcmp(w->home.pool, w->pool, BLOCKS * w->home.kv.block_bytes) == 0);
}

/* The peer must be dead, of its lie or because it left. */
static void after_death(home *w, int32_t status) {
    inf_err err;
    CHECK(inf_dist_peer_status(w->home.d, HOSTILE, &err) == status);
    CHECK(inf_dist_peer_status(w->home.d, HONEST, &err) == INF_OK);
    inf_dist_end(w->home.d);
    for (int i = 0; i < 2 && status == INF_EPROTO; i++) {
        raw_expect_death(w->lane[i], INF_EPEER);
    }
    w->refused += status == INF_EPROTO;
    w->deaths++;
    disconnect_creditor(w);
    connect_creditor(w);
}

/* The message to send in place of w->msg, which is valid: itself mutated, or an older one. */
static const raw_msg *lie(home *w, uint64_t room) {
    memcpy(&w->valid, &w->msg, sizeof w->valid);
    if (raw_below(&w->rng, 12) == 0 && w->old.len > 0) {
        memcpy(&w->msg, &w->old, sizeof w->msg);
    } else {
        raw_mutate(&w->msg, room, &w->rng);
    }
    memcpy(&w->old, &w->valid, sizeof w->old);
    return &w->msg;
}

/* Equal to the valid partial but for statuses that a creditor may give? */
static bool judge_partial(const home *w, const raw_msg *m, int32_t *status, uint32_t groups) {
    if (m->len != w->valid.len || memcmp(m->data, w->valid.data, sizeof(inf_wire_head)) != 0) {
        return false;
    }
    memcpy(status, m->data + sizeof(inf_wire_head), groups * sizeof *status);
    for (uint32_t g = 0; g < groups; g++) {
        if (status[g] != INF_OK && status[g] != INF_ESTALE) {
            return false;
        }
    }
    return true;
}

/* Requests 0 and 1 are the message's groups; request 2 is the honest creditor's. */
static void check_step(home *w, const raw_msg *m, int32_t layer, const int32_t *status) {
    const step *s = &w->s;
    uint32_t row = 0;
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t rows = w->r[i]->rows, off = s->seqs[i].token_off;
        CHECK(s->seq_out[i].status == status[i]);
        CHECK(s->seq_out[i].peer == (status[i] == INF_OK ? -1 : HOSTILE));
        if (status[i] == INF_OK) {
            const float *o2 = (const float *)(const void *)(m->data + m->head);
            const float *lse2 = o2 + (size_t)(w->r[0]->rows + w->r[1]->rows) * W_ROW;
            w->home.ops->merge(w->o + (size_t)off * W_ROW, w->lse + (size_t)off * W_HEADS,
                               o2 + (size_t)row * W_ROW, lse2 + (size_t)row * W_HEADS,
                               (int32_t)rows, W_HEADS, W_DIM);
        }
        CHECK(memcmp(w->o + (size_t)off * W_ROW, s->o + (size_t)off * W_ROW,
                     rows * W_ROW * sizeof(float)) == 0);
        CHECK(memcmp(w->lse + (size_t)off * W_HEADS, s->lse + (size_t)off * W_HEADS,
                     rows * W_HEADS * sizeof(float)) == 0);
        row += rows;
    }
    CHECK(s->seq_out[2].status == INF_OK && w_error(s, w->r[2], 2, layer) < 1e-5);
}

static void partial_round(home *w) {
    int32_t layer = (int32_t)raw_below(&w->rng, 2), status[2] = {INF_EPROTO, INF_EPROTO};
    const uint8_t *msg;
    uint64_t len;
    w_begin(&w->home, &w->s, w->r, N_REQS, ++w->id);
    CHECK(w_post(&w->home, &w->s, layer, &w->rng) == 2);
    CHECK(raw_receive(w->lane[0], &msg, &len) == INF_OK);
    raw_partial(&w->msg, (const inf_wire_head *)(const void *)msg, &w->rng);
    inf_link_release(w->lane[0]);
    CHECK(raw_head(&w->msg)->n_groups == 2);
    uint32_t how = raw_below(&w->rng, 40);
    const raw_msg *m = lie(w, inf_dist_query_slot_bytes(&w->home.config));
    bool ok = judge_partial(w, m, status, 2);
    if (how == 0) { /* dies instead */
        ok = false;
        inf_link_close(w->lane[0]);
        w->lane[0] = NULL;
    } else {
        CHECK(raw_send(w->lane[0], m->data, m->len) == INF_OK);
    }
    w_attend(&w->home, &w->s, w->r, layer);
    memcpy(w->o, w->s.o, sizeof w->o);
    memcpy(w->lse, w->s.lse, sizeof w->lse);
    inf_dist_collect(w->home.d, &w->s.b, w_step_lane(&w->s));
    if (!ok) {
        status[0] = status[1] = how == 0 ? INF_EPEER : INF_EPROTO;
    }
    check_step(w, m, layer, status);
    if (!ok) {
        after_death(w, status[0]);
        return;
    }
    w->accepted++;
    if (how == 1) { /* a second answer is taken for the next one's and is none */
        CHECK(raw_send(w->lane[0], m->data, m->len) == INF_OK);
        w_begin(&w->home, &w->s, w->r, N_REQS, ++w->id);
        CHECK(w_layer(&w->home, &w->s, w->r, 0, &w->rng) == 2);
        CHECK(w->s.seq_out[0].status == INF_EPROTO && w->s.seq_out[2].status == INF_OK);
        after_death(w, INF_EPROTO);
    }
    inf_dist_end(w->home.d);
}

/* The protocol's verdict on an acknowledgement of the valid one's move. */
static int32_t judge_ack(const home *w, const raw_msg *m) {
    inf_wire_move is, want;
    memcpy(&is, m->data + sizeof(inf_wire_head), sizeof is);
    memcpy(&want, w->valid.data + sizeof(inf_wire_head), sizeof want);
    bool echo = m->len == w->valid.len &&
                memcmp(m->data, w->valid.data, sizeof(inf_wire_head)) == 0 &&
                is.handle == want.handle && is.generation == want.generation &&
                is.first == want.first && is.n == want.n && is.ticket == want.ticket;
    if (echo && is.status == INF_ESTALE) {
        return INF_ESTALE;
    }
    return echo && is.status == INF_OK && is.landed <= want.landed ? INF_OK : INF_EPROTO;
}

static void ack_round(home *w) {
    int32_t n = 1 + (int32_t)raw_below(&w->rng, 4);
    const int32_t *blocks = w->r[2]->blocks + raw_below(&w->rng, 6);
    uint32_t first = raw_below(&w->rng, 9), how = raw_below(&w->rng, 40);
    uint64_t ticket = w_next(&w->rng), block = w->home.kv.block_bytes, len;
    const uint8_t *msg;
    inf_err err;
    CHECK(inf_dist_move_post(w->home.d, HOSTILE, 3, 4, first, blocks, n, ticket, &err) == INF_OK);
    CHECK(raw_receive(w->lane[1], &msg, &len) == INF_OK);
    CHECK(len == inf_wire_move_head() + (uint64_t)n * block);
    for (int32_t i = 0; i < n; i++) {
        CHECK(memcmp(msg + inf_wire_move_head() + i * block, w_block(&w->home, blocks[i]), block) ==
              0);
    }
    w->msg.len = w->msg.head = inf_wire_move_head();
    memcpy(w->msg.data, msg, w->msg.len);
    inf_link_release(w->lane[1]);
    raw_head(&w->msg)->kind = INF_WIRE_ACK;
    raw_head(&w->msg)->bytes = w->msg.len;
    raw_move(&w->msg)->landed = first + (uint32_t)n;
    const raw_msg *m = lie(w, inf_dist_move_slot_bytes(&w->home.config));
    int32_t status = how == 0 ? INF_EPEER : judge_ack(w, m);
    if (how == 0) {
        inf_link_close(w->lane[1]);
        w->lane[1] = NULL;
    } else {
        CHECK(raw_send(w->lane[1], m->data, m->len) == INF_OK);
    }
    inf_move_done done = w_move_wait(&w->home);
    CHECK(done.ticket == ticket && done.status == status);
    if (status == INF_OK && how == 1) { /* an acknowledgement of nothing */
        CHECK(raw_send(w->lane[1], m->data, m->len) == INF_OK);
        w_expect_status(&w->home, HOSTILE, INF_EPROTO);
        status = INF_EPROTO;
    }
    if (status == INF_EPROTO || status == INF_EPEER) {
        after_death(w, status);
    } else {
        w->accepted++;
    }
}

static void hostile_creditor(uint32_t provider) {
    home *w = aligned_alloc(64, sizeof *w);
    CHECK(w != NULL);
    memset(w, 0, sizeof *w);
    w->provider = provider;
    w->rng = seed;
    w->home = w_open(BLOCKS);
    w->other = w_open(BLOCKS);
    w_join(provider, &w->home, HONEST, &w->other, 9);
    connect_creditor(w);
    for (uint32_t i = 0; i < N_REQS; i++) {
        w->r[i] = w_req(&w->home, 40 + i, 1 + i, &w->rng);
    }
    w_lend(&w->home, w->r[2], &w->other, HONEST, 9, 4);
    for (uint32_t i = 0; i < 2; i++) { /* said to lie at the hostile creditor */
        w->r[i]->spans[0] = (inf_step_span){HOSTILE, i, 1, 0, 8, 0};
        w->r[i]->spans[1] = (inf_step_span){HOSTILE, 7, 3, 8, 4, 0};
        w->r[i]->n_spans = 1 + i;
        w->r[i]->local_pos0 = 8 + 4 * i;
    }
    w->pool = malloc(BLOCKS * w->home.kv.block_bytes);
    CHECK(w->pool != NULL);
    memcpy(w->pool, w->home.pool, BLOCKS * w->home.kv.block_bytes);
    for (uint64_t i = 0; i < messages; i++) {
        if (raw_below(&w->rng, 3) == 0) {
            ack_round(w);
        } else {
            partial_round(w);
        }
        check_counts(w);
    }
    CHECK(messages < 1000 || (w->accepted > messages / 10 && w->deaths > messages / 10));
    disconnect_creditor(w);
    for (uint32_t i = 0; i < N_REQS; i++) {
        free(w->r[i]);
    }
    w_close(&w->home);
    w_close(&w->other);
    free(w->pool);
    free(w);
}

int main(int argc, char **argv) {
    messages = argc > 1 ? strtoull(argv[1], NULL, 10) : messages;
    seed = argc > 2 ? strtoull(argv[2], NULL, 10) | 1 : seed;
    for (uint32_t provider = INF_PROVIDER_SHM; provider <= INF_PROVIDER_TCP; provider++) {
        hostile_creditor(provider);
    }
    return 0;
}
