/* Moves by copies from pool to pool, at the receiver: what was granted is not given to others while
 * a sender may still copy into it, and nobody waits for a pool that is being exported. */
#include "direct_fake.h"

/* Raw ends of peer's lanes at b, over which two blocks of a span of its own were granted. */
static uint64_t grant_to(inst *b, uint32_t peer, const int32_t *blocks, inf_link *raw[2],
                         raw_msg *ask) {
    inf_link *s[2];
    inf_err err;
    const uint8_t *msg = NULL;
    uint64_t len = 0;
    w_lanes(INF_PROVIDER_SHM, b, raw, s);
    CHECK(inf_dist_peer_serve(b->d, peer, s[0], s[1], &err) == INF_OK);
    CHECK(inf_dist_span_set(b->d, peer, peer, 1, blocks, 2, &err) == INF_OK);
    ask->len = inf_wire_move_head();
    *raw_head(ask) =
        (inf_wire_head){.magic = INF_WIRE_MAGIC, .kind = INF_WIRE_ASK, .bytes = ask->len};
    *raw_move(ask) = (inf_wire_move){.handle = peer, .generation = 1, .n = 2, .ticket = 8};
    CHECK(raw_send(raw[1], ask->data, ask->len) == INF_OK);
    CHECK(raw_receive(raw[1], &msg, &len) == INF_OK);
    inf_wire_head h;
    memcpy(&h, msg, sizeof h);
    CHECK(h.kind == INF_WIRE_GRANT && h.n_entries > 0 && len == inf_wire_grant_bytes(h.n_entries));
    inf_link_release(raw[1]);
    return inf_now();
}

/* Senders that are late, each with a grant. What they may still copy into is not given to others:
 * the span's close waits as long as a sender may be late (late.c), 5 s after its lanes' end, 10 s
 * if it lives and is silent. That one is none the worse for it, and what it says at last ends its
 * move alone. */
static void late(void) {
    inst b = w_open(64);
    inf_link *raw[2], *silent[2];
    inf_err err;
    static raw_msg ask, query;
    const uint8_t *msg = NULL;
    uint64_t len = 0, rng = 4;
    uint64_t granted = grant_to(&b, 3, (int32_t[]){19, 20}, silent, &ask);
    uint64_t gone = grant_to(&b, 2, (int32_t[]){9, 10}, raw, &ask);
    inf_link_close(raw[0]);
    inf_link_close(raw[1]);
    w_expect_status(&b, 2, INF_EPEER);
    CHECK(inf_dist_peer_detach(b.d, 2, &err) == INF_OK);
    CHECK(inf_dist_span_close(b.d, 2, 1, &err) == INF_OK);
    CHECK(inf_now() - gone > 4500000000u);

    CHECK(inf_dist_span_close(b.d, 3, 1, &err) == INF_OK);
    CHECK(inf_now() - granted > 9500000000u);
    CHECK(inf_dist_peer_status(b.d, 3, &err) == INF_OK);
    raw_head(&ask)->kind = INF_WIRE_LANDED;
    *raw_move(&ask) = (inf_wire_move){.handle = 3, .generation = 1, .n = 2, .ticket = 8};
    CHECK(raw_send(silent[1], ask.data, ask.len) == INF_OK);
    CHECK(raw_receive(silent[1], &msg, &len) == INF_OK);
    inf_wire_head h;
    inf_wire_move m;
    memcpy(&h, msg, sizeof h);
    memcpy(&m, msg + sizeof h, sizeof m);
    CHECK(h.kind == INF_WIRE_ACK && m.status == INF_ESTALE && m.ticket == 8);
    inf_link_release(silent[1]);
    raw_query(&query, 1, 1, 1, 1, 0, &rng); /* of a span that is over: an answer all the same */
    raw_entries(&query)[0] =
        (inf_wire_entry){.handle = 3, .generation = 1, .n_tokens = 2 * W_BLOCK};
    raw_groups(&query)[0].q_pos0 = 2 * W_BLOCK;
    CHECK(raw_send(silent[0], query.data, query.len) == INF_OK);
    CHECK(raw_receive(silent[0], &msg, &len) == INF_OK);
    CHECK(((const inf_wire_head *)(const void *)msg)->kind == INF_WIRE_PARTIAL);
    inf_link_release(silent[0]);
    CHECK(inf_dist_peer_status(b.d, 3, &err) == INF_OK);
    inf_link_close(silent[0]);
    inf_link_close(silent[1]);
    w_close(&b);
}

/* While a pool is being exported for one peer, which may take long, others are served. */
typedef struct {
    inst *w;
    inf_link *link[2];
} serving;

static void *serve_one(void *arg) {
    serving *s = arg;
    inf_err err;
    CHECK(inf_dist_peer_serve(s->w->d, 7, s->link[0], s->link[1], &err) == INF_OK);
    return NULL;
}

static void beside_an_export(void) {
    inst a = w_open(64), b = w_open(64);
    inf_link *c[2];
    pthread_t thread;
    uint64_t rng = 6;
    w_join(INF_PROVIDER_SHM, &a, 1, &b, 2);
    req *r = w_req(&a, 40, 1, &rng);
    w_lend(&a, r, &b, 1, 2, 4);
    step *s = calloc(1, sizeof *s);
    serving v = {.w = &a};
    w_lanes(INF_PROVIDER_SHM, &a, c, v.link);
    held_open(&fake.exporting);
    atomic_store(&fake.hold, true);
    CHECK(pthread_create(&thread, NULL, serve_one, &v) == 0);
    held_await(&fake.exporting);
    held_begin(&fake.exporting);
    w_begin(&a, s, &r, 1, 1);
    CHECK(w_layer(&a, s, &r, 0, &rng) == 1 && w_error(s, r, 0, 0) < 1e-5);
    inf_dist_end(a.d);
    CHECK(!atomic_load(&fake.exporting.late));
    held_end(&fake.exporting);
    CHECK(pthread_join(thread, NULL) == 0);
    inf_link_close(c[0]);
    inf_link_close(c[1]);
    free(s);
    free(r);
    w_close(&a);
    w_close(&b);
}

int main(void) {
    use_fake();
    beside_an_export();
    late();
    return 0;
}
