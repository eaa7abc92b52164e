/* Moves over several rails, which die and come back under way, and moves that are put: over shm and
 * tcp, and over verbs where there are RDMA ports (two of them as rails, if there are two).
 * test_rails_lies has senders that lie.
 *
 *   test_rails [rounds] */
#include "rail_ends.h"

#include "transport/verbs/ring.h"

enum { RAILS = 3 };

static int rounds = 12;

/* The end of a move, which ends the test with what the device says of the peer if it is not what it
 * may be. */
static int32_t moved(inst *a, const inst *b, int32_t also) {
    inf_err err = {0};
    inf_move_done done = w_move_wait(a);
    if (done.status != INF_OK && done.status != also) {
        fprintf(stderr, "a move ended with %d; the peers are", done.status);
        for (int i = 0; i < 2; i++) {
            int status = inf_dist_peer_status(i == 0 ? a->d : b->d, PEER, &err);
            fprintf(stderr, " %d (%s)", status, status == INF_OK ? "" : err.message);
        }
        fprintf(stderr, "\n");
        exit(1);
    }
    return done.status;
}

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
    rail_ends(w->provider, bytes, rail % 2 == 1, end);
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
        moved(&w->a, &w->b, INF_OK);
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
        moved(&w->a, &w->b, INF_OK);
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
        int32_t status = moved(&w->a, &w->b, INF_ESTALE);
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
    inf_peer_rails r;
    inf_err err;
    CHECK_OK(inf_dist_peer_rails(w->a.d, PEER, &r, &err));
    CHECK(r.out == (1 << RAILS) - 1); /* or w->out is not */
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
        req *r = w_req(&w->a, 4 * W_BLOCK, 1, &w->rng);
        step *s = malloc(sizeof *s);
        CHECK(s != NULL);
        w_lend(&w->a, r, &w->b, PEER, PEER, 2);
        if (i == 1) {
            w_begin(&w->a, s, &r, 1, 1);
        }
        bool all = false;
        for (uint32_t k = 0; !all; k++) { /* on a busy machine a rail may have no piece of a move */
            uint32_t gen = 1500000 + 100 * i + k;
            CHECK(k < 100);
            shuffle(w);
            open_span(w, gen, BLOCKS / 2);
            post_move(w, gen, BLOCKS / 2);
            moved(&w->a, &w->b, INF_OK);
            limits(w, &least, &most);
            all = i == 1 ? most == 64 << 10 : least == 4 << 20;
            CHECK_OK(inf_dist_span_close(w->b.d, 1, gen, &err));
        }
        inf_dist_end(w->a.d);
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

static void run(uint32_t provider) {
    world *w = open_world(provider);
    test_spread(w);
    test_dying(w);
    test_close_under_way(w);
    if (provider == INF_PROVIDER_VERBS) {
        test_share(w);
    }
    test_first(w);
    close_world(w);
}

int main(int argc, char **argv) {
    rounds = argc > 1 ? atoi(argv[1]) : rounds;
    each_provider(run);
    return 0;
}
