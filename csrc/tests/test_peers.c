/* Peers and spans that come, grow and go while steps and moves are under way. */
#include "wire_raw.h"

static const double TOLERANCE = 1e-5;

static double cpu_seconds(void) {
    struct timespec t;
    CHECK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) == 0);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void sleep_ms(int64_t ms) {
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

/* A home that computes its own part for seconds does not read meanwhile; its host lives, and so
 * does the link. The message is larger than what a socket takes in. */
static void slow_reader(void) {
    const uint64_t bytes = 16 << 20;
    inf_link *c, *s;
    void *buf;
    const void *msg;
    uint64_t len;
    int status;
    w_link(INF_PROVIDER_TCP, bytes, &c, &s, NULL);
    CHECK(inf_link_prepare(s, &buf) == INF_OK);
    memset(buf, 7, bytes);
    CHECK(inf_link_post(s, bytes) == INF_OK);
    for (int i = 0; i < 25; i++) {
        CHECK(inf_link_wait(&s, 1, -1, 100000000) == INF_AGAIN);
    }
    CHECK(inf_link_status(s, NULL) == INF_OK);
    while ((status = inf_link_poll(c, &msg, &len)) == INF_AGAIN) {
        inf_link_wait(&s, 1, -1, 0);
    }
    CHECK(status == INF_OK && len == bytes && memcmp(msg, buf, bytes) == 0);
    CHECK(inf_link_wait(&s, 1, -1, 1000000) == INF_AGAIN);
    inf_link_close(c);
    CHECK(inf_link_wait(&s, 1, -1, INT64_MAX) == INF_OK && inf_link_status(s, NULL) == INF_EPEER);
    inf_link_close(s);
}

/* An instance that only hosts has room for its answers too. */
static void host_only(uint32_t provider) {
    inst v = w_open_with(64, 0);
    inf_link *c[2], *s[2];
    inf_err err;
    uint64_t rng = 4, len;
    const uint8_t *msg;
    int32_t status;
    raw_msg *m = aligned_alloc(64, sizeof *m);
    CHECK(m != NULL);
    w_lanes(provider, &v, c, s);
    CHECK(inf_dist_peer_serve(v.d, 9, s[0], s[1], &err) == INF_OK);
    raw_query(m, 1, W_TOKENS, 1, 1, 0, &rng);
    raw_groups(m)->q_pos0 = W_BLOCK;
    raw_entries(m)[0] = (inf_wire_entry){.handle = 1, .generation = 1, .n_tokens = W_BLOCK};
    CHECK(raw_send(c[0], m->data, m->len) == INF_OK);
    CHECK(raw_receive(c[0], &msg, &len) == INF_OK);
    CHECK(len == inf_wire_partial_head(1) + 4 * (uint64_t)W_TOKENS * (W_ROW + W_HEADS));
    memcpy(&status, msg + sizeof(inf_wire_head), sizeof status);
    CHECK(status == INF_ESTALE && inf_dist_peer_status(v.d, 9, &err) == INF_OK);
    inf_link_close(c[0]);
    inf_link_close(c[1]);
    w_close(&v);
    free(m);
}

/* Takes the next move's message without giving its slot back, and acknowledges it. */
static void acknowledge(inf_link *link, int32_t status) {
    raw_msg *m = aligned_alloc(64, sizeof *m);
    const uint8_t *msg;
    CHECK(m != NULL && raw_receive(link, &msg, &m->len) == INF_OK);
    m->len = inf_wire_move_head();
    memcpy(m->data, msg, m->len);
    raw_head(m)->kind = INF_WIRE_ACK;
    raw_head(m)->bytes = m->len;
    raw_move(m)->status = status;
    raw_move(m)->landed = raw_move(m)->first + raw_move(m)->n;
    CHECK(raw_send(link, m->data, m->len) == INF_OK);
    free(m);
}

/* A move that once found no room, and then ended early, leaves nobody spinning for that room. */
static void idle_mover(void) {
    inst a = w_open(1100);
    inf_link *c[2], *raw[2];
    inf_err err;
    int32_t blocks[1100];
    w_lanes(INF_PROVIDER_SHM, &a, c, raw);
    CHECK(inf_dist_peer_attach(a.d, 1, c[0], c[1], &err) == INF_OK);
    for (int32_t i = 0; i < 1100; i++) {
        blocks[i] = i;
    }
    /* Four messages; two are under way, and their slots stay taken. */
    CHECK(inf_dist_move_post(a.d, 1, 0, 1, 0, blocks, 1100, 7, &err) == INF_OK);
    acknowledge(raw[1], INF_OK);
    sleep_ms(50); /* the mover finds no slot for the third */
    acknowledge(raw[1], INF_ESTALE);
    inf_move_done done;
    CHECK(inf_dist_move_wait(a.d, INT64_MAX, &done, &err) == INF_OK && done.status == INF_ESTALE);
    inf_link_release(raw[1]);
    inf_link_release(raw[1]);
    double before = cpu_seconds();
    sleep_ms(300);
    CHECK(cpu_seconds() - before < 0.15);
    inf_link_close(raw[0]);
    inf_link_close(raw[1]);
    w_close(&a);
}

typedef struct {
    inst *w;
    atomic_bool done;
} detacher;

static void *detach_peer_1(void *arg) {
    detacher *k = arg;
    inf_err err;
    CHECK(inf_dist_peer_detach(k->w->d, 1, &err) == INF_OK);
    atomic_store(&k->done, true);
    return NULL;
}

static void *collect(void *arg) {
    void **at = arg;
    inst *home = at[0];
    step *s = at[1];
    inf_dist_collect(home->d, &s->b, w_step_lane(s));
    return NULL;
}

/* A detach of one creditor does not wait for the answer of another. */
static void detach_beside_a_slow_one(uint32_t provider) {
    inst a = w_open(128), b = w_open(128);
    inf_link *c[2], *raw[2];
    inf_err err;
    uint64_t rng = 3, len;
    const uint8_t *msg;
    w_join(provider, &a, 1, &b, 2);
    w_lanes(provider, &a, c, raw);
    CHECK(inf_dist_peer_attach(a.d, 3, c[0], c[1], &err) == INF_OK);
    req *r[2] = {w_req(&a, 40, 1, &rng), w_req(&a, 40, 1, &rng)};
    w_lend(&a, r[0], &b, 1, 2, 4);
    r[1]->spans[r[1]->n_spans++] = (inf_step_span){3, 0, 1, 0, 4, 0};
    r[1]->local_pos0 = 4;
    step *s = malloc(sizeof *s);
    CHECK(s != NULL);
    w_begin(&a, s, r, 2, 1);
    s->head.peer_timeout_ns = INT64_MAX;
    CHECK(w_post(&a, s, 0, &rng) == 2);
    w_attend(&a, s, r, 0);
    pthread_t stepper, thread;
    void *args[2] = {&a, s};
    detacher k = {.w = &a};
    CHECK(pthread_create(&stepper, NULL, collect, args) == 0);
    CHECK(raw_receive(raw[0], &msg, &len) == INF_OK); /* asked; b has answered, or is about to */
    sleep_ms(20);
    CHECK(pthread_create(&thread, NULL, detach_peer_1, &k) == 0);
    for (int i = 0; i < 20000 && !atomic_load(&k.done); i++) {
        sleep_ms(1);
    }
    CHECK(atomic_load(&k.done));
    inf_link_close(raw[0]); /* and only now the step's wait ends */
    CHECK(pthread_join(stepper, NULL) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(s->seq_out[0].status == INF_EPEER && s->seq_out[0].peer == 1);
    CHECK(s->seq_out[1].status == INF_EPEER && s->seq_out[1].peer == 3);
    inf_dist_end(a.d);
    inf_link_close(raw[1]);
    free(s);
    free(r[0]);
    free(r[1]);
    w_close(&a);
    w_close(&b);
}

/* When a close returns, nobody reads the span: the blocks get other contents at once, and a step
 * that asked before has the right answer, or is told that the span is over. */
static void close_under_way(uint32_t provider) {
    inst a = w_open(64), b = w_open(64);
    inf_err err;
    uint64_t rng = 21;
    int32_t theirs[20];
    w_join(provider, &a, 1, &b, 2);
    req *r = w_req(&a, 117, 33, &rng);
    step *s = malloc(sizeof *s);
    CHECK(s != NULL);
    for (int32_t i = 0; i < 20; i++) {
        theirs[i] = 63 - 3 * i;
    }
    r->n_spans = 1;
    r->local_pos0 = 20 * W_BLOCK;
    for (uint32_t gen = 1; gen <= 150; gen++) {
        CHECK(inf_dist_span_set(b.d, 2, 0, gen, theirs, 20, &err) == INF_OK);
        CHECK(inf_dist_move_post(a.d, 1, 0, gen, 0, r->blocks, 20, gen, &err) == INF_OK);
        CHECK(w_move_wait(&a).status == INF_OK);
        r->spans[0] = (inf_step_span){1, 0, gen, 0, r->local_pos0, 0};
        w_begin(&a, s, &r, 1, gen);
        CHECK(w_post(&a, s, 0, &rng) == 1);
        nanosleep(&(struct timespec){0, raw_below(&rng, 200000)}, NULL);
        CHECK(inf_dist_span_close(b.d, 0, gen, &err) == INF_OK);
        for (int32_t i = 0; i < 20; i++) {
            memset(w_block(&b, theirs[i]), 0xff, b.kv.block_bytes);
        }
        w_attend(&a, s, &r, 0);
        inf_dist_collect(a.d, &s->b, w_step_lane(s));
        inf_dist_end(a.d);
        CHECK(s->seq_out[0].status == INF_OK ? w_error(s, r, 0, 0) < TOLERANCE
                                             : s->seq_out[0].status == INF_ESTALE);
    }
    free(s);
    free(r);
    w_close(&a);
    w_close(&b);
}

/* ---- everything at once ---- */

typedef struct {
    uint32_t provider;
    inst a, b, c; /* a has requests at b and c; only b comes and goes */
    req *r[2];
    atomic_bool stop;
    uint64_t good, lost, grown, moved;
} churn;

static void *steps(void *arg) {
    churn *w = arg;
    uint64_t rng = 77, id = 0;
    step *s = malloc(sizeof *s);
    CHECK(s != NULL);
    while (!atomic_load(&w->stop)) {
        w_begin(&w->a, s, w->r, 2, ++id);
        for (int32_t l = 0; l < W_LAYERS; l++) {
            w_layer(&w->a, s, w->r, l, &rng);
            CHECK(s->seq_out[1].status == INF_OK && w_error(s, w->r[1], 1, l) < TOLERANCE);
            CHECK(s->seq_out[0].status == INF_OK ? w_error(s, w->r[0], 0, l) < TOLERANCE
                                                 : s->seq_out[0].status == INF_EPEER);
        }
        inf_dist_end(w->a.d);
        s->seq_out[0].status == INF_OK ? w->good++ : w->lost++;
    }
    free(s);
    return NULL;
}

/* The creditor c extends the span that it is asked about, block by block; the blocks beyond what
 * landed belong to nobody yet. */
static void *grow(void *arg) {
    churn *w = arg;
    const inf_step_span *span = &w->r[1]->spans[0];
    int32_t blocks[64], n = (int32_t)(span->n_tokens / W_BLOCK);
    inf_err err;
    for (int32_t i = 0; i < 64; i++) {
        blocks[i] = i < n ? w->c.config.num_blocks - 1 - i : i;
    }
    while (!atomic_load(&w->stop) && n < 64) {
        CHECK(inf_dist_span_set(w->c.d, 5, span->handle, span->generation, blocks, ++n, &err) ==
              INF_OK);
        w->grown++;
        sleep_ms(2);
    }
    return NULL;
}

/* Spans at b that are opened, filled and closed. A move fails when b is away, or when its
 * acknowledgement was lost with the links and the next one does not follow what landed. */
static void *moves(void *arg) {
    churn *w = arg;
    int32_t theirs[4] = {1, 2, 3, 4}, mine[4] = {100, 101, 102, 103};
    inf_err err;
    for (uint32_t gen = 1; !atomic_load(&w->stop); gen++) {
        CHECK(inf_dist_span_set(w->b.d, 5, 9, gen, theirs, 4, &err) == INF_OK);
        for (uint32_t first = 0; first < 4; first += 2) {
            int status = inf_dist_move_post(w->a.d, 1, 9, gen, first, mine, 2, gen, &err);
            CHECK(status == INF_OK || status == INF_EPEER);
            if (status == INF_OK) {
                status = w_move_wait(&w->a).status;
                CHECK(status == INF_OK || status == INF_EPEER || status == INF_ESTALE);
            }
            w->moved += status == INF_OK;
        }
        CHECK(inf_dist_span_close(w->b.d, 9, gen, &err) == INF_OK);
    }
    return NULL;
}

static void churn_world(uint32_t provider, int rounds) {
    churn *w = calloc(1, sizeof *w);
    pthread_t threads[3];
    inf_err err;
    uint64_t rng = 12;
    CHECK(w != NULL);
    w->a = w_open(128);
    w->b = w_open(128);
    w->c = w_open(128);
    w_join(provider, &w->a, 1, &w->b, 5);
    w_join(provider, &w->a, 2, &w->c, 5);
    for (uint32_t i = 0; i < 2; i++) {
        w->r[i] = w_req(&w->a, 40, 3, &rng);
        w_lend(&w->a, w->r[i], i == 0 ? &w->b : &w->c, 1 + i, 5, 6);
    }
    CHECK(pthread_create(&threads[0], NULL, steps, w) == 0);
    CHECK(pthread_create(&threads[1], NULL, grow, w) == 0);
    CHECK(pthread_create(&threads[2], NULL, moves, w) == 0);
    for (int i = 0; i < rounds; i++) {
        sleep_ms(raw_below(&rng, 6));
        bool home_first = raw_below(&rng, 2) == 0;
        CHECK(inf_dist_peer_detach(home_first ? w->a.d : w->b.d, home_first ? 1 : 5, &err) ==
              INF_OK);
        CHECK(inf_dist_peer_detach(home_first ? w->b.d : w->a.d, home_first ? 5 : 1, &err) ==
              INF_OK);
        w_join(provider, &w->a, 1, &w->b, 5);
    }
    atomic_store(&w->stop, true);
    for (int i = 0; i < 3; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK(w->good > 0 && w->moved > 0 && w->grown > 0);
    /* Close while the other ends are busy: nobody waits for anybody. */
    for (uint32_t i = 0; i < 64; i++) {
        int32_t mine[2] = {100, 101};
        CHECK(inf_dist_move_post(w->a.d, 2, 3, 1, i, mine, 2, i, &err) == INF_OK);
    }
    w_close(&w->c);
    w_close(&w->a);
    w_close(&w->b);
    free(w->r[0]);
    free(w->r[1]);
    free(w);
}

int main(void) {
    for (uint32_t provider = INF_PROVIDER_SHM; provider <= INF_PROVIDER_TCP; provider++) {
        host_only(provider);
        detach_beside_a_slow_one(provider);
        close_under_way(provider);
        churn_world(provider, 100);
    }
    idle_mover();
    slow_reader();
    return 0;
}
