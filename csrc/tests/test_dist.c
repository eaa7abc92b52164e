/* DistAttention over both providers: attention over a KV cache that lies on several instances
 * equals attention over the whole, moves land exactly, and what fails fails alone. */
#include "dist_world.h"

#include <pthread.h>
#include <stdatomic.h>

static const double TOLERANCE = 1e-5;

/* ---- merged attention ---- */

typedef struct {
    inst *home;
    req *reqs[W_MAX_REQS];
    uint32_t n;
    uint64_t rng;
    double worst;
} stepper;

/* Steps over all layers; every request's rows must be those of the whole. */
static void *step_on(void *arg) {
    stepper *t = arg;
    step *s = malloc(sizeof *s);
    CHECK(s != NULL);
    for (uint64_t id = 1; id <= 8; id++) {
        w_begin(t->home, s, t->reqs, t->n, id);
        for (int32_t l = 0; l < W_LAYERS; l++) {
            w_layer(t->home, s, t->reqs, l, &t->rng);
            for (uint32_t i = 0; i < t->n; i++) {
                CHECK(s->seq_out[i].status == INF_OK && s->seq_out[i].peer == -1);
                t->worst = fmax(t->worst, w_error(s, t->reqs[i], i, l));
            }
        }
    }
    free(s);
    return NULL;
}

/* n instances, all of them debtors and creditors of each other, all stepping at once. The requests
 * of each: one on every peer in turn and back at the first (two spans there), one at a single peer,
 * one local. Instance a calls b peer 10 + b. */
static double merge_world(uint32_t provider, int n, uint32_t rows) {
    inst w[4];
    stepper t[4];
    pthread_t threads[4];
    double worst = 0;
    for (int a = 0; a < n; a++) {
        w[a] = w_open(256);
    }
    for (int a = 0; a < n; a++) {
        for (int b = 0; b < n; b++) {
            if (a != b) {
                w_join(provider, &w[a], (uint32_t)(10 + b), &w[b], (uint32_t)(10 + a));
            }
        }
    }
    for (int a = 0; a < n; a++) {
        t[a] = (stepper){.home = &w[a], .n = 3, .rng = (uint64_t)(a + 7) * rows};
        uint32_t lengths[3] = {117, 62, 9};
        for (int i = 0; i < 3; i++) {
            t[a].reqs[i] = w_req(&w[a], lengths[i], rows, &t[a].rng);
        }
        for (int k = 1; k <= n; k++) { /* the last round is the first peer again */
            int b = (a + (k < n ? k : 1)) % n;
            w_lend(&w[a], t[a].reqs[0], &w[b], (uint32_t)(10 + b), (uint32_t)(10 + a), 5 + k % 2);
        }
        int b = (a + 1) % n;
        w_lend(&w[a], t[a].reqs[1], &w[b], (uint32_t)(10 + b), (uint32_t)(10 + a), 15);
    }
    for (int a = 0; a < n; a++) {
        CHECK(pthread_create(&threads[a], NULL, step_on, &t[a]) == 0);
    }
    for (int a = 0; a < n; a++) {
        pthread_join(threads[a], NULL);
        worst = fmax(worst, t[a].worst);
    }
    uint64_t sent = 0, served = 0;
    for (int a = 0; a < n; a++) {
        inf_device_stats s = {0};
        inf_dist_stats(w[a].d, &s);
        sent += s.query_rows;
        served += s.served_rows;
        CHECK(s.refused_messages == 0 && s.moved_blocks > 0 && s.query_messages > 0);
        for (uint32_t i = 0; i < t[a].n; i++) {
            free(t[a].reqs[i]);
        }
        w_close(&w[a]);
    }
    CHECK(sent == served && sent > 0);
    return worst;
}

/* ---- threads that end a peer ---- */

typedef struct {
    inst *w;
    inf_link *link; /* closed by the thread, when not NULL */
    atomic_bool go;
} killer;

/* Waits for the query, then ends the peer in its way: the link's other end closes, or a detach. */
static void *kill_peer(void *arg) {
    killer *k = arg;
    inf_err err;
    while (!atomic_load(&k->go)) {
        nanosleep(&(struct timespec){0, 100000}, NULL);
    }
    if (k->link != NULL) {
        inf_link_close(k->link);
    } else {
        CHECK(inf_dist_peer_detach(k->w->d, 1, &err) == INF_OK);
    }
    return NULL;
}

/* ---- windows, messages per layer, and the negative control ---- */

static void layers_and_control(uint32_t provider) {
    inst a = w_open(128), b = w_open(128);
    w_join(provider, &a, 1, &b, 2);
    uint64_t rng = 99;
    req *r[2] = {w_req(&a, 101, 1, &rng), w_req(&a, 60, 2, &rng)};
    w_lend(&a, r[0], &b, 1, 2, 20); /* positions 0..79 of 101: beyond a window of 9 */
    w_lend(&a, r[1], &b, 1, 2, 5);  /* 0..19 of 60: beyond a window of 40 too */
    step *s = malloc(sizeof *s);
    w_begin(&a, s, r, 2, 5);
    inf_device_stats st = {0};
    uint64_t rows[W_LAYERS] = {3, 4, 4}; /* both requests, the first alone, nobody */
    for (int32_t l = 0; l < W_LAYERS; l++) {
        CHECK(w_layer(&a, s, r, l, &rng) == (l < 2 ? 1 : 0));
        CHECK(w_error(s, r[0], 0, l) < TOLERANCE && w_error(s, r[1], 1, l) < TOLERANCE);
        inf_dist_stats(a.d, &st);
        CHECK(st.query_rows == rows[l] && st.query_messages == (uint64_t)(l < 1 ? 1 : 2));
    }
    inf_err err;
    CHECK(inf_dist_peer_status(a.d, 1, &err) == INF_OK);

    w_begin(&a, s, r, 2, 6);
    s->head.flags = INF_STEP_EMPTY_REMOTE;
    CHECK(w_layer(&a, s, r, 0, &rng) == 1);
    CHECK(memcmp(s->o, s->local, s->head.n_tokens * W_ROW * sizeof(float)) == 0);
    CHECK(w_error(s, r[0], 0, 0) > 1e-2 && w_error(s, r[1], 1, 0) > 1e-2);
    CHECK(s->seq_out[0].status == INF_OK);

    /* A detach in the middle of a step waits until the step's next call has let go. */
    killer k = {.w = &a, .go = true};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, kill_peer, &k) == 0);
    w_expect_status(&a, 1, INF_EPEER);
    CHECK(w_layer(&a, s, r, 1, &rng) == 0);
    CHECK(s->seq_out[0].status == INF_EPEER && s->seq_out[0].peer == 1);
    pthread_join(thread, NULL);
    w_expect_status(&b, 2, INF_EPEER);
    CHECK(inf_dist_peer_detach(b.d, 2, &err) == INF_OK);
    w_join(provider, &a, 1, &b, 2); /* the spans outlived the links */
    w_begin(&a, s, r, 2, 7);
    CHECK(w_layer(&a, s, r, 0, &rng) == 1 && w_error(s, r[0], 0, 0) < TOLERANCE);
    free(s);
    free(r[0]);
    free(r[1]);
    w_close(&b);
    w_close(&a);
}

/* ---- failures ---- */

static void expect(const step *s, req *const *r, uint32_t seq, int32_t layer, int status,
                   int32_t peer) {
    CHECK(s->seq_out[seq].status == status && s->seq_out[seq].peer == peer);
    if (status == INF_OK) {
        CHECK(w_error(s, r[seq], seq, layer) < TOLERANCE);
    }
}

/* A stale span, or more tokens than landed, costs that request alone. */
static void stale(uint32_t provider) {
    inst a = w_open(128), b = w_open(128);
    w_join(provider, &a, 1, &b, 2);
    uint64_t rng = 5;
    req *r[3] = {w_req(&a, 40, 2, &rng), w_req(&a, 40, 1, &rng), w_req(&a, 40, 3, &rng)};
    for (int i = 0; i < 3; i++) {
        w_lend(&a, r[i], &b, 1, 2, 5);
    }
    step *s = malloc(sizeof *s);
    inf_err err;
    r[1]->spans[0].generation++;
    w_begin(&a, s, r, 3, 1);
    w_layer(&a, s, r, 0, &rng);
    expect(s, r, 0, 0, INF_OK, -1);
    expect(s, r, 1, 0, INF_ESTALE, 1);
    expect(s, r, 2, 0, INF_OK, -1);
    inf_device_stats st = {0};
    inf_dist_stats(a.d, &st);
    CHECK(st.query_rows == 6);
    w_layer(&a, s, r, 1, &rng); /* the failed request's row is not sent again */
    expect(s, r, 2, 1, INF_OK, -1);
    inf_dist_stats(a.d, &st);
    CHECK(st.query_rows == 11);

    r[1]->spans[0].generation--;
    r[2]->spans[0].n_tokens += W_BLOCK; /* of which nothing was moved */
    r[0]->spans[0].handle = 1u << 30;
    w_begin(&a, s, r, 3, 2);
    w_layer(&a, s, r, 0, &rng);
    expect(s, r, 0, 0, INF_ESTALE, 1);
    expect(s, r, 1, 0, INF_OK, -1);
    expect(s, r, 2, 0, INF_ESTALE, 1);

    CHECK(inf_dist_span_close(b.d, 1, 4, &err) == INF_ESTALE);
    CHECK(inf_dist_span_close(b.d, 1, 3, &err) == INF_OK);
    CHECK(inf_dist_span_close(b.d, 1, 3, &err) == INF_ESTALE);
    w_begin(&a, s, r, 3, 3);
    w_layer(&a, s, r, 0, &rng);
    expect(s, r, 1, 0, INF_ESTALE, 1);
    CHECK(inf_dist_peer_status(a.d, 1, &err) == INF_OK);
    inf_dist_stats(b.d, &st);
    CHECK(st.refused_messages == 6); /* a group each: 1, 2 and 3 of the three steps */

    int32_t blocks[3] = {1, 2, 3}, other[3] = {1, 9, 3};
    CHECK(inf_dist_span_set(b.d, 2, 1, 3, blocks, 2, &err) == INF_ESTALE);
    CHECK(inf_dist_span_set(b.d, 2, 1, 4, blocks, 2, &err) == INF_OK);
    CHECK(inf_dist_span_set(b.d, 2, 1, 4, blocks, 3, &err) == INF_OK);
    CHECK(inf_dist_span_set(b.d, 2, 1, 4, other, 3, &err) == INF_EINVAL);
    CHECK(inf_dist_span_set(b.d, 2, 1, 4, blocks, 2, &err) == INF_EINVAL);
    CHECK(inf_dist_span_set(b.d, 7, 1, 4, blocks, 3, &err) == INF_ESTALE);
    CHECK(inf_dist_span_set(b.d, 7, 1, 5, blocks, 3, &err) == INF_EINVAL);
    CHECK(inf_dist_span_set(b.d, 2, W_HANDLES, 1, blocks, 3, &err) == INF_EINVAL);
    free(s);
    for (int i = 0; i < 3; i++) {
        free(r[i]);
    }
    w_close(&a);
    w_close(&b);
}

/* Peer 1 takes queries and never answers: it is late, or dies meanwhile, or is detached. */
static void silent(uint32_t provider, int how) {
    inst a = w_open(128), b = w_open(128);
    inf_link *c[2], *raw[2];
    inf_err err;
    w_join(provider, &a, 2, &b, 2);
    w_lanes(provider, &a, c, raw);
    CHECK(inf_dist_peer_attach(a.d, 1, c[0], c[1], &err) == INF_OK);
    uint64_t rng = 31;
    req *r[3] = {w_req(&a, 40, 2, &rng), w_req(&a, 40, 1, &rng), w_req(&a, 20, 1, &rng)};
    w_lend(&a, r[0], &b, 2, 2, 4);
    w_lend(&a, r[1], &b, 2, 2, 4);
    r[0]->spans[r[0]->n_spans++] = (inf_step_span){1, 0, 1, 16, 4, 0};
    r[0]->local_pos0 += 4;
    killer k = {.w = &a, .link = how == INF_EPEER ? raw[0] : NULL};
    pthread_t thread;
    step *s = malloc(sizeof *s);
    w_begin(&a, s, r, 3, 1);
    if (how == INF_ETIMEOUT) {
        s->head.peer_timeout_ns = 20000000;
    } else {
        CHECK(pthread_create(&thread, NULL, kill_peer, &k) == 0);
    }
    CHECK(w_post(&a, s, 0, &rng) == 2);
    w_attend(&a, s, r, 0);
    atomic_store(&k.go, true);
    if (how != INF_ETIMEOUT) {
        s->head.peer_timeout_ns = INT64_MAX; /* only the death ends the wait */
    }
    inf_dist_collect(a.d, &s->b, w_step_lane(s));
    int status = how == INF_ETIMEOUT ? INF_ETIMEOUT : INF_EPEER;
    expect(s, r, 2, 0, INF_OK, -1);
    /* A late partial of b is possible only where the wait was short; then either may be blamed. */
    bool late = s->seq_out[1].status != INF_OK;
    expect(s, r, 0, 0, status, late ? s->seq_out[0].peer : 1);
    if (how != INF_ETIMEOUT || s->seq_out[1].status == INF_OK) {
        expect(s, r, 1, 0, INF_OK, -1);
        s->head.peer_timeout_ns = (uint64_t)W_LONG_NS;
        CHECK(w_layer(&a, s, r, 1, &rng) == 1); /* b alone is asked */
        expect(s, r, 1, 1, INF_OK, -1);
    }
    if (how != INF_ETIMEOUT) {
        pthread_join(thread, NULL);
    }
    CHECK(inf_dist_peer_status(a.d, 1, &err) == status);
    /* The other end sees it: no late answer can be taken for a newer one. */
    for (int lane = k.link == NULL ? 0 : 1; lane < 2; lane++) {
        const void *msg;
        uint64_t len;
        int rc;
        while ((rc = inf_link_poll(raw[lane], &msg, &len)) >= 0) {
            CHECK(inf_link_wait(&raw[lane], 1, -1, W_LONG_NS) == INF_OK);
        }
        CHECK(rc == INF_EPEER);
        inf_link_close(raw[lane]);
    }
    if (k.link == NULL && how == INF_ETIMEOUT) {
        CHECK(inf_dist_peer_detach(a.d, 1, &err) == INF_OK);
    }
    free(s);
    for (int i = 0; i < 3; i++) {
        free(r[i]);
    }
    w_close(&a);
    w_close(&b);
}

/* A whole instance goes away: both sides of every neighbour see it, its requests fail, no other. */
static void lost_instance(uint32_t provider) {
    inst a = w_open(128), b = w_open(128), gone = w_open(128);
    w_join(provider, &a, 2, &b, 2);
    w_join(provider, &a, 1, &gone, 2);
    w_join(provider, &gone, 3, &b, 1);
    uint64_t rng = 8;
    req *r[2] = {w_req(&a, 40, 2, &rng), w_req(&a, 40, 1, &rng)};
    w_lend(&a, r[0], &gone, 1, 2, 4);
    w_lend(&a, r[1], &b, 2, 2, 4);
    step *s = malloc(sizeof *s);
    w_begin(&a, s, r, 2, 1);
    w_layer(&a, s, r, 0, &rng);
    expect(s, r, 0, 0, INF_OK, -1);
    w_close(&gone);
    w_expect_status(&a, 1, INF_EPEER); /* also while a step holds the link: the move lane tells */
    w_expect_status(&b, 1, INF_EPEER);
    w_layer(&a, s, r, 1, &rng);
    expect(s, r, 0, 1, INF_EPEER, 1);
    expect(s, r, 1, 1, INF_OK, -1);
    w_begin(&a, s, r, 2, 2);
    w_layer(&a, s, r, 0, &rng);
    expect(s, r, 0, 0, INF_EPEER, 1);
    expect(s, r, 1, 0, INF_OK, -1);
    free(s);
    free(r[0]);
    free(r[1]);
    w_close(&a);
    w_close(&b);
}

int main(void) {
    double worst = 0;
    for (uint32_t provider = INF_PROVIDER_SHM; provider <= INF_PROVIDER_TCP; provider++) {
        for (int n = 2; n <= 4; n += 2) {
            w_awake_ns = n == 2 ? 300000 : 0;
            worst = fmax(worst, merge_world(provider, n, 1));
            worst = fmax(worst, merge_world(provider, n, 33));
        }
        CHECK(worst < TOLERANCE);
        layers_and_control(provider);
        stale(provider);
        silent(provider, INF_ETIMEOUT);
        silent(provider, INF_EPEER);
        silent(provider, INF_OK);
        w_awake_ns = 300000;
        silent(provider, INF_ETIMEOUT);
        silent(provider, INF_EPEER);
        lost_instance(provider);
    }
    printf("largest difference from attention over the whole: %.2g\n", worst);
    return 0;
}
