/* Moves over several rails, which die and come back under way, and moves that are put: over shm and
 * tcp, and over verbs where there are RDMA ports (two of them as rails, if there are two).
 *
 *   test_rails [rounds] */
/* Blocks of 24 KiB, so that moves are many pieces, in messages too. */
#define W_BLOCK_TOKENS 32

#include "verbs_pair.h"

#include "wire_raw.h"

#include "transport/verbs/ring.h"

enum { BLOCKS = 512, PEER = 3, RAILS = 3 };

static int rounds = 12;
static rdma_ports ports;

typedef struct {
    uint32_t provider;
    inst a, b;            /* a sends to b; each knows the other as PEER */
    int sock[RAILS];      /* one more descriptor of each rail's socket: its end is the rail's */
    inf_link *out[RAILS]; /* the sender's ends; the device's, and only looked into */
    int32_t mine[BLOCKS / 2], theirs[BLOCKS / 2];
    uint64_t rng;
    uint32_t longest; /* about what a move takes, ns */
} world;

static void make_link(world *w, uint64_t bytes, int rail, inf_link *end[2]) {
    if (w->provider != INF_PROVIDER_VERBS) {
        w_link(w->provider, bytes, &end[0], &end[1], NULL);
    } else {
        rdma_ports p = ports;
        if (rail % 2 == 1) { /* the other way round */
            p.device[0] = ports.device[1], p.device[1] = ports.device[0];
            p.port[0] = ports.port[1], p.port[1] = ports.port[0];
        }
        pair_links(&p, (pair_shape){W_SLOTS, bytes, 0}, end, NULL);
    }
    if (rail >= 0) {
        w->out[rail] = end[0];
        w->sock[rail] = dup(end[0]->config.sock_fd);
        CHECK(w->sock[rail] >= 0);
    }
}

static void join(world *w) {
    inf_link *query[2], *move[2];
    inf_err err;
    make_link(w, inf_dist_query_slot_bytes(&w->a.config), -1, query);
    make_link(w, inf_dist_move_slot_bytes(&w->a.config), 0, move);
    CHECK_OK(inf_dist_peer_serve(w->b.d, PEER, query[1], move[1], &err));
    CHECK_OK(inf_dist_peer_attach(w->a.d, PEER, query[0], move[0], &err));
}

static void add_rail(world *w, int rail) {
    inf_link *move[2];
    inf_err err;
    make_link(w, inf_dist_move_slot_bytes(&w->a.config), rail, move);
    CHECK_OK(inf_dist_peer_rail(w->b.d, PEER, (uint32_t)rail, true, move[1], &err));
    CHECK_OK(inf_dist_peer_rail(w->a.d, PEER, (uint32_t)rail, false, move[0], &err));
}

static void expect_rails(inst *w, uint32_t out, uint32_t in) {
    inf_peer_rails r;
    inf_err err;
    for (int i = 0; i < 60000; i++) {
        CHECK_OK(inf_dist_peer_rails(w->d, PEER, &r, &err));
        if (r.out == out && r.in == in) {
            return;
        }
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    fprintf(stderr, "rails are %x out, %x in; expected %x and %x\n", r.out, r.in, out, in);
    exit(1);
}

static world *open_world(uint32_t provider) {
    world *w = calloc(1, sizeof *w);
    CHECK(w != NULL);
    w->provider = provider;
    w->rng = 7 + provider;
    w->a = w_open(BLOCKS);
    w->b = w_open(BLOCKS);
    join(w);
    for (int i = 1; i < RAILS; i++) {
        add_rail(w, i);
    }
    return w;
}

static void close_world(world *w) {
    w_close(&w->a);
    w_close(&w->b);
    for (int i = 0; i < RAILS; i++) {
        close(w->sock[i]);
    }
    free(w);
}

/* Random lists of blocks, with runs among them, and fresh numbers in the sender's. */
static void shuffle(world *w) {
    for (int32_t i = 0; i < BLOCKS / 2; i++) {
        w->mine[i] = 2 * i + (int32_t)raw_below(&w->rng, 2);
        w->theirs[i] = BLOCKS / 2 - 1 - i;
    }
    for (int k = 0; k < 100; k++) { /* runs of theirs, of both parts of the pool */
        uint32_t i = raw_below(&w->rng, BLOCKS / 2), j = raw_below(&w->rng, BLOCKS / 2);
        int32_t t = w->theirs[i];
        w->theirs[i] = w->theirs[j], w->theirs[j] = t;
    }
    for (int32_t i = 0; i < 64; i++) {
        w->theirs[i] = BLOCKS / 2 + i;
    }
    for (int32_t i = 0; i < BLOCKS / 2; i++) {
        uint8_t *b = w_block(&w->a, w->mine[i]);
        for (uint64_t at = 0; at < w->a.kv.block_bytes; at += 8) {
            uint64_t x = w_next(&w->rng);
            memcpy(b + at, &x, 8);
        }
    }
}

static void check_blocks(world *w, int32_t n) {
    w_sync(&w->b);
    for (int32_t i = 0; i < n; i++) {
        CHECK(memcmp(w_block(&w->a, w->mine[i]), w_block(&w->b, w->theirs[i]),
                     w->a.kv.block_bytes) == 0);
    }
    w_sync(&w->b);
}

static void open_span(world *w, uint32_t gen, int32_t n) {
    inf_err err;
    CHECK_OK(inf_dist_span_set(w->b.d, PEER, 1, gen, w->theirs, n, &err));
}

static void post_move(world *w, uint32_t gen, int32_t n) {
    inf_err err;
    CHECK_OK(inf_dist_move_post(w->a.d, PEER, 1, gen, 0, w->mine, n, gen, &err));
}

/* Everything lands, and nothing beside it. */
static void test_spread(world *w) {
    inf_peer_rails r;
    inf_err err;
    const uint32_t all = (1 << RAILS) - 1;
    CHECK_OK(inf_dist_peer_rails(w->a.d, PEER, &r, &err));
    CHECK(r.out == all && r.in == 0);
    CHECK(r.puts == (w->provider == INF_PROVIDER_VERBS ? all : 0) && r.no_puts[0] == 0);
    uint8_t *before = malloc(BLOCKS * w->b.kv.block_bytes);
    CHECK(before != NULL);
    for (uint32_t gen = 1; gen <= 4; gen++) {
        int32_t n = gen == 1 ? BLOCKS / 2 : 1 + (int32_t)raw_below(&w->rng, BLOCKS / 2);
        shuffle(w);
        open_span(w, gen, n);
        memcpy(before, w->b.pool, BLOCKS * w->b.kv.block_bytes);
        double begun = now_s();
        post_move(w, gen, n);
        CHECK(w_move_wait(&w->a).status == INF_OK);
        w->longest = gen == 1 ? (uint32_t)((now_s() - begun) * 1e9) + 1 : w->longest;
        check_blocks(w, n);
        for (int32_t i = 0; i < n; i++) {
            memcpy(before + (uint64_t)w->theirs[i] * w->b.kv.block_bytes,
                   w_block(&w->b, w->theirs[i]), w->b.kv.block_bytes);
        }
        CHECK(memcmp(before, w->b.pool, BLOCKS * w->b.kv.block_bytes) == 0);
        CHECK_OK(inf_dist_span_close(w->b.d, 1, gen, &err));
    }
    free(before);
}

/* A rail dies under way: the move goes on over the others, and the rail may come back. */
static void test_dying(world *w) {
    inf_err err;
    uint64_t again = 0;
    for (int i = 0; i < rounds || (again == 0 && i < 200 * rounds); i++) {
        uint32_t gen = 100 + (uint32_t)i;
        int rail = 1 + (int)raw_below(&w->rng, RAILS - 1);
        inf_device_stats s = {0};
        shuffle(w);
        open_span(w, gen, BLOCKS / 2);
        inf_dist_stats(w->a.d, &s);
        again -= s.moved_blocks + BLOCKS / 2;
        post_move(w, gen, BLOCKS / 2);
        nanosleep(&(struct timespec){0, raw_below(&w->rng, w->longest)}, NULL);
        CHECK(shutdown(w->sock[rail], SHUT_RDWR) == 0);
        CHECK(w_move_wait(&w->a).status == INF_OK);
        check_blocks(w, BLOCKS / 2);
        inf_dist_stats(w->a.d, &s);
        again += s.moved_blocks;
        CHECK(inf_dist_peer_status(w->a.d, PEER, &err) == INF_OK);
        CHECK(inf_dist_peer_status(w->b.d, PEER, &err) == INF_OK);
        expect_rails(&w->a, ((1 << RAILS) - 1) & ~(1u << rail), 0);
        expect_rails(&w->b, 0, ((1 << RAILS) - 1) & ~(1u << rail));
        close(w->sock[rail]);
        CHECK_OK(inf_dist_span_close(w->b.d, 1, gen, &err));
        add_rail(w, rail);
        expect_rails(&w->a, (1 << RAILS) - 1, 0);
    }
    printf("  %llu blocks were sent again\n", (unsigned long long)again);
    CHECK(again > 0);
}

/* When a close returns, nobody writes the span's blocks any more. */
static void test_close_under_way(world *w) {
    uint64_t block = w->b.kv.block_bytes, stale = 0;
    inf_err err;
    for (int i = 0; i < 3 * rounds; i++) {
        uint32_t gen = 1000000 + (uint32_t)i;
        shuffle(w);
        open_span(w, gen, BLOCKS / 2);
        post_move(w, gen, BLOCKS / 2);
        nanosleep(&(struct timespec){0, raw_below(&w->rng, 600000)}, NULL);
        CHECK_OK(inf_dist_span_close(w->b.d, 1, gen, &err));
        for (int32_t k = 0; k < BLOCKS / 2; k++) {
            memset(w_block(&w->b, w->theirs[k]), 0xff, block);
        }
        int status = w_move_wait(&w->a).status;
        CHECK(status == INF_OK || status == INF_ESTALE);
        stale += status != INF_OK;
        for (int32_t k = 0; k < BLOCKS / 2; k++) {
            const uint8_t *b = w_block(&w->b, w->theirs[k]);
            CHECK(b[0] == 0xff && memcmp(b, b + 1, block - 1) == 0);
        }
    }
    CHECK(inf_dist_peer_status(w->a.d, PEER, &err) == INF_OK);
    printf("  %llu of %d moves met a span that was over\n", (unsigned long long)stale, 3 * rounds);
}

/* The largest and the smallest number of bytes that a rail may have in flight. */
static void limits(world *w, uint64_t *least, uint64_t *most) {
    *least = UINT64_MAX;
    *most = 0;
    for (int i = 0; i < RAILS; i++) {
        uint64_t limit = ((const inf_verbs_link *)(const void *)w->out[i])->ep->puts.limit;
        *least = limit < *least ? limit : *least;
        *most = limit > *most ? limit : *most;
    }
}

/* Moves leave room for queries while steps have some, and take it back. */
static void test_share(world *w) {
    inf_err err;
    uint64_t least, most;
    w->b.next_handle = 2; /* 1 is used otherwise */
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t gen = 1500000 + i;
        req *r = w_req(&w->a, 4 * W_BLOCK, 1, &w->rng);
        step *s = malloc(sizeof *s);
        CHECK(s != NULL);
        w_lend(&w->a, r, &w->b, PEER, PEER, 2);
        shuffle(w);
        open_span(w, gen, BLOCKS / 2);
        if (i == 1) {
            w_begin(&w->a, s, &r, 1, 1);
        }
        post_move(w, gen, BLOCKS / 2);
        CHECK(w_move_wait(&w->a).status == INF_OK);
        limits(w, &least, &most);
        CHECK(i == 1 ? most == 64 << 10 : least == 4 << 20);
        inf_dist_end(w->a.d);
        CHECK_OK(inf_dist_span_close(w->b.d, 1, gen, &err));
        free(s);
        free(r);
    }
}

/* The first rail is the peer. */
static void test_first(world *w) {
    inf_err err;
    shuffle(w);
    open_span(w, 2000000, BLOCKS / 2);
    CHECK(shutdown(w->sock[0], SHUT_RDWR) == 0);
    w_expect_status(&w->a, PEER, INF_EPEER);
    w_expect_status(&w->b, PEER, INF_EPEER);
    expect_rails(&w->a, 0, 0);
    expect_rails(&w->b, 0, 0);
    CHECK(inf_dist_move_post(w->a.d, PEER, 1, 2000000, 0, w->mine, 1, 1, &err) == INF_EPEER);
    CHECK_OK(inf_dist_peer_detach(w->a.d, PEER, &err));
    CHECK_OK(inf_dist_peer_detach(w->b.d, PEER, &err));
    CHECK_OK(inf_dist_span_close(w->b.d, 1, 2000000, &err));
}

/* ---- a sender that lies ---- */

typedef struct {
    inst v;
    inf_link *lane[2];
    raw_msg msg;
} victim;

static victim *open_victim(world *w) {
    inf_link *server[2];
    inf_err err;
    victim *v = aligned_alloc(64, sizeof *v);
    CHECK(v != NULL);
    memset(v, 0, sizeof *v);
    v->v = w_open(BLOCKS);
    for (int i = 0; i < 2; i++) {
        inf_link *end[2];
        uint64_t bytes = i == 0 ? inf_dist_query_slot_bytes(&v->v.config)
                                : inf_dist_move_slot_bytes(&v->v.config);
        make_link(w, bytes, -1, end);
        v->lane[i] = end[0];
        server[i] = end[1];
    }
    CHECK_OK(inf_dist_peer_serve(v->v.d, PEER, server[0], server[1], &err));
    CHECK_OK(inf_dist_span_set(v->v.d, PEER, 1, 1, (int32_t[]){9, 10, 11, 40, 41, 3}, 6, &err));
    return v;
}

static void close_victim(victim *v) {
    inf_link_close(v->lane[0]);
    inf_link_close(v->lane[1]);
    w_close(&v->v);
    free(v);
}

static void say(victim *v, uint32_t kind, uint32_t first, uint32_t n, int32_t status) {
    inf_wire_move m = {.handle = 1, .generation = 1, .first = first, .n = n, .ticket = 8};
    m.status = status;
    memset(v->msg.data, 0, inf_wire_move_head());
    v->msg.len = inf_wire_move_head();
    *raw_head(&v->msg) =
        (inf_wire_head){.magic = INF_WIRE_MAGIC, .kind = kind, .bytes = v->msg.len};
    *raw_move(&v->msg) = m;
    CHECK(raw_send(v->lane[1], v->msg.data, v->msg.len) == INF_OK);
}

static uint32_t landed; /* of the answer that was heard last */

/* The answer's status; grants gets what was granted. */
static int32_t hear(victim *v, uint32_t kind, inf_grant *grants, uint32_t *n) {
    const uint8_t *msg;
    uint64_t len;
    inf_wire_head h;
    inf_wire_move m;
    CHECK(raw_receive(v->lane[1], &msg, &len) == INF_OK);
    memcpy(&h, msg, sizeof h);
    memcpy(&m, msg + sizeof h, sizeof m);
    CHECK(h.kind == kind && len == inf_wire_grant_bytes(h.n_entries) && h.bytes == len);
    if (grants != NULL) {
        memcpy(grants, msg + inf_wire_move_head(), h.n_entries * sizeof *grants);
        *n = h.n_entries;
    }
    inf_link_release(v->lane[1]);
    landed = m.landed;
    return m.status;
}

/* What no honest sender says ends the link and is counted. */
static void test_lies(world *w) {
    bool puts = w->provider == INF_PROVIDER_VERBS;
    inf_grant grants[INF_WIRE_PIECE_BLOCKS];
    uint32_t n;
    for (int lie = 0; lie < 7; lie++) {
        victim *v = open_victim(w);
        inf_device_stats s = {0};
        say(v, INF_WIRE_ASK, 0, 4, 0);
        CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_OK && n == (puts ? 2 : 0));
        if (puts) { /* runs of blocks are one grant */
            CHECK(grants[0].bytes == 3 * v->v.kv.block_bytes &&
                  grants[1].bytes == v->v.kv.block_bytes);
            say(v, INF_WIRE_ASK, 4, 3, 0); /* beyond the span */
            CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_ESTALE && n == 0);
            say(v, INF_WIRE_ASK, 3, 2, 0); /* over what is granted */
            CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_ESTALE && n == 0);
            say(v, INF_WIRE_ASK, 4, 2, 0);
            CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_OK && n == 2);
        }
        switch (lie) {
        case 0: /* not what was asked for */
            say(v, INF_WIRE_LANDED, 0, 3, 0);
            break;
        case 1: /* not granted */
            say(v, INF_WIRE_LANDED, 2, 1, 0);
            break;
        case 2: /* a status that is none */
            say(v, INF_WIRE_LANDED, 0, 4, INF_EIO);
            break;
        case 3:
            say(v, INF_WIRE_ASK, 0, 0, 0);
            break;
        case 4: /* a third piece; or a status in an ask */
            say(v, INF_WIRE_ASK, puts ? 5 : 0, 1, puts ? 0 : INF_ESTALE);
            break;
        case 5: /* an answer */
            say(v, INF_WIRE_GRANT, 0, 4, 0);
            break;
        default: /* landed twice */
            say(v, INF_WIRE_LANDED, 0, 4, 0);
            if (puts) {
                CHECK(hear(v, INF_WIRE_ACK, NULL, NULL) == INF_OK);
                say(v, INF_WIRE_LANDED, 0, 4, 0);
            }
        }
        raw_expect_death(v->lane[1], INF_EPEER);
        w_expect_status(&v->v, PEER, INF_EPROTO);
        inf_dist_stats(v->v.d, &s);
        CHECK(s.refused_messages == (puts ? 3 : 1)); /* two asks, and the end */
        close_victim(v);
    }
}

/* A sender that was granted blocks and falls silent: its rail ends, and the span can be closed. */
static void test_silence(world *w) {
    inf_grant grants[INF_WIRE_PIECE_BLOCKS];
    uint32_t n;
    inf_err err;
    victim *v = open_victim(w);
    say(v, INF_WIRE_ASK, 0, 4, 0);
    CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_OK && n == 2);
    CHECK_OK(inf_dist_span_close(v->v.d, 1, 1, &err));
    w_expect_status(&v->v, PEER, INF_ETIMEOUT);
    raw_expect_death(v->lane[1], INF_EPEER);
    close_victim(v);
    v = open_victim(w); /* one that gives up says so */
    say(v, INF_WIRE_ASK, 0, 4, 0);
    CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_OK && n == 2);
    say(v, INF_WIRE_LANDED, 0, 4, INF_ESTALE);
    CHECK(hear(v, INF_WIRE_ACK, NULL, NULL) == INF_ESTALE);
    say(v, INF_WIRE_ASK, 0, 4, 0); /* and may ask again */
    CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_OK && n == 2);
    say(v, INF_WIRE_LANDED, 0, 4, 0);
    CHECK(hear(v, INF_WIRE_ACK, NULL, NULL) == INF_OK && landed == 4);
    say(v, INF_WIRE_ASK, 0, 4, 0); /* what is there, it hears, and cannot write any more */
    CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_OK && n == 0 && landed == 4);
    say(v, INF_WIRE_ASK, 2, 3, 0); /* but no honest piece is there in part */
    CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_ESTALE && n == 0);
    close_victim(v);
}

static void run(uint32_t provider) {
    static const char *const NAMES[] = {"", "shm", "tcp", "verbs"};
    printf("%s\n", NAMES[provider]);
    world *w = open_world(provider);
    test_spread(w);
    test_dying(w);
    test_close_under_way(w);
    test_lies(w);
    if (provider == INF_PROVIDER_VERBS) {
        test_share(w);
        test_silence(w);
    }
    test_first(w);
    close_world(w);
}

int main(int argc, char **argv) {
    rounds = argc > 1 ? atoi(argv[1]) : rounds;
    run(INF_PROVIDER_SHM);
    run(INF_PROVIDER_TCP);
    if (rdma_find(&ports)) {
        rdma_open(&ports);
        run(INF_PROVIDER_VERBS);
        rdma_close(&ports);
    }
    return 0;
}
