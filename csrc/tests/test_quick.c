/* A peer that is quick: it takes its answers and sends again just when this end, whose slots were
 * all full of answers, looks for a message. It is as honest as one that takes a moment longer. And
 * room that shows later than the message does, as over verbs, is waited for. */
#include "wire_raw.h"

#include "transport/link_impl.h"

enum { PEER = 7, BLOCKS = 8, QUERIES = 0, MOVES = 1 };

/* A lane. Between waits' being set and its being 0 the peer's end is the server's thread's. */
typedef struct {
    const inf_link_ops *real;
    inf_link_ops ops;
    inf_link *peer, *server; /* its ends */
    const raw_msg *next;
    atomic_int waits; /* answers that the peer takes when all are there, and then it sends next */
    atomic_int late;  /* prepares behind that which find no room so far */
    bool was_late;    /* the last one; the server's thread's */
} quick;

static quick lanes[2];

static quick *of(const inf_link *link) { return &lanes[link == lanes[MOVES].server]; }

static int quick_poll(inf_link *link, const void **msg, uint64_t *len) {
    quick *q = of(link);
    int waits = atomic_load(&q->waits);
    const void *at = NULL;
    uint64_t n = 0;
    while (waits > 0 && inf_link_poll(q->peer, &at, &n) == INF_OK) {
        waits--;
        if (waits == 0) {
            for (int i = 0; i < W_SLOTS; i++) {
                inf_link_release(q->peer);
            }
            CHECK(raw_send(q->peer, q->next->data, q->next->len) == INF_OK);
        }
        atomic_store(&q->waits, waits);
    }
    return q->real->poll(link, msg, len);
}

static int quick_prepare(inf_link *link, void **buf) {
    quick *q = of(link);
    int late = atomic_load(&q->late);
    q->was_late = late > 0 && atomic_load(&q->waits) == 0;
    if (q->was_late) {
        atomic_store(&q->late, late - 1);
        return INF_AGAIN;
    }
    return q->real->prepare(link, buf);
}

static bool quick_full(const inf_link *link) {
    const quick *q = of(link);
    return !q->was_late && (q->real->full == NULL || q->real->full(link));
}

/* Before the link is the server's. */
static void hook(quick *q, inf_link *server) {
    q->server = server;
    q->real = server->ops;
    q->ops = *server->ops;
    q->ops.poll = quick_poll;
    q->ops.prepare = quick_prepare;
    q->ops.full = quick_full;
    server->ops = &q->ops;
}

/* Fills the server's slots with answers, and has the peer act as said; the last message's answer,
 * to be released. */
static const uint8_t *act(quick *q, const raw_msg *first, const raw_msg *next, int late) {
    const uint8_t *msg = NULL;
    uint64_t len = 0;
    q->next = next;
    atomic_store(&q->late, 0);
    for (int i = 0; i < W_SLOTS; i++) {
        CHECK(raw_send(q->peer, first[i].data, first[i].len) == INF_OK);
    }
    atomic_store(&q->late, late);
    atomic_store(&q->waits, W_SLOTS);
    for (int i = 0; atomic_load(&q->waits) > 0; i++) {
        CHECK(i < 60000 && nanosleep(&(struct timespec){0, 1000000}, NULL) == 0);
    }
    CHECK(raw_receive(q->peer, &msg, &len) == INF_OK);
    CHECK(atomic_load(&q->late) == 0);
    return msg;
}

static void test_moves(inst *w, uint64_t *rng, uint32_t generation, int late) {
    static raw_msg m[W_SLOTS + 1];
    int32_t blocks[W_SLOTS + 1];
    inf_wire_move got;
    inf_err err;
    for (uint32_t i = 0; i <= W_SLOTS; i++) {
        blocks[i] = (int32_t)(BLOCKS - 1 - i);
        raw_blocks(&m[i],
                   (inf_wire_move){.handle = 1, .generation = generation, .first = i, .n = 1},
                   w->kv.block_bytes, rng);
    }
    CHECK(inf_dist_span_set(w->d, PEER, 1, generation, blocks, W_SLOTS + 1, &err) == INF_OK);
    const uint8_t *msg = act(&lanes[MOVES], m, &m[W_SLOTS], late);
    memcpy(&got, msg + sizeof(inf_wire_head), sizeof got);
    inf_link_release(lanes[MOVES].peer);
    CHECK(got.status == INF_OK && got.landed == W_SLOTS + 1);
    w_sync(w);
    for (uint32_t i = 0; i <= W_SLOTS; i++) {
        CHECK(memcmp(w_block(w, blocks[i]), m[i].data + m[i].head, w->kv.block_bytes) == 0);
    }
}

static void test_queries(uint64_t *rng, uint32_t generation, int late) {
    static raw_msg m[W_SLOTS + 1];
    inf_wire_head got;
    int32_t status = -1;
    for (uint32_t i = 0; i <= W_SLOTS; i++) {
        raw_query(&m[i], 1, 2, 1, 10 + i, 0, rng);
        raw_groups(&m[i])->q_pos0 = 100;
        raw_entries(&m[i])[0] = (inf_wire_entry){1, generation, 0, W_SLOTS * W_BLOCK};
    }
    const uint8_t *msg = act(&lanes[QUERIES], m, &m[W_SLOTS], late);
    memcpy(&got, msg, sizeof got);
    memcpy(&status, msg + sizeof got, sizeof status);
    inf_link_release(lanes[QUERIES].peer);
    CHECK(got.kind == INF_WIRE_PARTIAL && got.step_id == 10 + W_SLOTS && status == INF_OK);
}

static void run(uint32_t provider) {
    inst w = w_open(BLOCKS);
    inf_link *server[2];
    uint64_t rng = 5 + provider;
    inf_err err;
    w_link(provider, inf_dist_query_slot_bytes(&w.config), &lanes[QUERIES].peer, &server[QUERIES],
           NULL);
    w_link(provider, inf_dist_move_slot_bytes(&w.config), &lanes[MOVES].peer, &server[MOVES], NULL);
    for (int i = 0; i < 2; i++) {
        hook(&lanes[i], server[i]);
    }
    CHECK(inf_dist_peer_serve(w.d, PEER, server[QUERIES], server[MOVES], &err) == INF_OK);
    for (uint32_t generation = 1; generation <= 20; generation++) {
        int late = generation % 2 ? 0 : 3;
        test_moves(&w, &rng, generation, late);
        test_queries(&rng, generation, late);
        CHECK(inf_dist_peer_status(w.d, PEER, &err) == INF_OK);
        CHECK(inf_dist_span_close(w.d, 1, generation, &err) == INF_OK);
    }
    w_close(&w);
    for (int i = 0; i < 2; i++) {
        inf_link_close(lanes[i].peer);
    }
}

int main(void) {
    run(INF_PROVIDER_SHM);
    run(INF_PROVIDER_TCP);
    puts("quick: ok");
    return 0;
}
