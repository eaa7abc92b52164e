/* A creditor asked by several debtors at once: what is there together is one call of answer, with
 * the results of one by one; and what is wrong with one message is nobody else's matter, nor is a
 * lane that fails, as long as there is another one.
 *
 * The device is a fake around the CPU's: it counts calls, holds one back until the test lets it go,
 * so that messages gather behind it, refuses what the test has named, and has lanes that fail and
 * stay so. */
#include "wire_raw.h"

#include "dist/internal.h"

#include <semaphore.h>

enum { DEBTORS = 5, PLUG = 0 };

static struct {
    int (*answer)(inf_lane *, const inf_attn *, int32_t, inf_err *);
    atomic_bool hold; /* the next call waits */
    sem_t held, go;
    _Atomic uint32_t calls;
    _Atomic uint32_t poison; /* a call with a query at this position fails */
    _Atomic uint32_t deadly; /* the same, and its lane has failed from then on */
    atomic_bool break_next;  /* the next call does that, whatever it is */
    _Atomic(inf_lane *) broken;
    _Atomic uint32_t opens;  /* of lanes that answer */
    _Atomic uint64_t gap_ns; /* between the last two of them */
    uint64_t opened_ns;      /* the server thread's */
    atomic_int refuse;       /* how opening one fails */
    int (*lane_open)(inf_backend *, const inf_lane_config *, inf_lane **, inf_err *);
    void (*lane_close)(inf_lane *);
} fake;

static int say(inf_err *err, int code, const char *text) {
    snprintf(err->message, sizeof err->message, "%s", text);
    return code;
}

static int fake_lane_open(inf_backend *b, const inf_lane_config *c, inf_lane **out, inf_err *err) {
    int refuse = atomic_load(&fake.refuse);
    if (c->kind == INF_LANE_ANSWER) {
        uint64_t now = inf_now();
        atomic_fetch_add(&fake.opens, 1);
        atomic_store(&fake.gap_ns, now - fake.opened_ns);
        fake.opened_ns = now;
        if (refuse != INF_OK) {
            *out = NULL;
            return say(err, refuse, "no such lane today");
        }
    }
    return fake.lane_open(b, c, out, err);
}

static void fake_lane_close(inf_lane *lane) {
    inf_lane *mine = lane;
    atomic_compare_exchange_strong(&fake.broken, &mine, NULL);
    fake.lane_close(lane);
}

static int fake_answer(inf_lane *lane, const inf_attn *args, int32_t n, inf_err *err) {
    atomic_fetch_add(&fake.calls, 1);
    if (atomic_exchange(&fake.break_next, false)) {
        atomic_store(&fake.broken, lane);
    }
    if (atomic_exchange(&fake.hold, false)) {
        CHECK(sem_post(&fake.held) == 0 && sem_wait(&fake.go) == 0);
    }
    for (int32_t i = 0; i < n; i++) {
        if (args[i].q_pos0 == atomic_load(&fake.poison)) {
            return INF_EINVAL;
        }
        if (args[i].q_pos0 == atomic_load(&fake.deadly)) {
            atomic_store(&fake.broken, lane);
        }
        /* A launch is of one window, so those with the same one stand together. */
        for (int32_t k = i + 1; k < n; k++) {
            CHECK(args[k].window != args[i].window || args[k - 1].window == args[i].window);
        }
    }
    if (atomic_load(&fake.broken) == lane) {
        return say(err, INF_EIO, "the lane is broken");
    }
    return fake.answer(lane, args, n, err);
}

typedef struct {
    inst home;
    req *r;
    step *s;
    int32_t layer; /* that it asks for */
    uint64_t rng;
} debtor;

typedef struct {
    inst v;
    debtor d[DEBTORS];
} world;

static world *open_world(const uint32_t pos0[DEBTORS], const uint32_t rows[DEBTORS]) {
    world *w = calloc(1, sizeof *w);
    inf_backend *b = w_backend(); /* its table is that of all instances; nobody uses it yet */
    inf_backend_ops *ops = (inf_backend_ops *)(uintptr_t)b->ops;
    CHECK(w != NULL);
    if (fake.answer == NULL) {
        fake.answer = ops->answer;
        fake.lane_open = ops->lane_open;
        fake.lane_close = ops->lane_close;
        ops->answer = fake_answer;
        ops->lane_open = fake_lane_open;
        ops->lane_close = fake_lane_close;
    }
    b->ops->close(b);
    w->v = w_open(256);
    for (uint32_t i = 0; i < DEBTORS; i++) {
        debtor *d = &w->d[i];
        d->home = w_open(256);
        d->rng = 100 + i;
        d->layer = (int32_t)i % W_LAYERS;
        w_join(INF_PROVIDER_SHM, &d->home, 1, &w->v, 10 + i);
        d->r = w_req(&d->home, pos0[i], rows[i], &d->rng);
        w_lend(&d->home, d->r, &w->v, 1, 10 + i, 3);
        w_lend(&d->home, d->r, &w->v, 1, 10 + i, 6); /* two spans of one request */
        d->s = calloc(1, sizeof *d->s);
        CHECK(d->s != NULL);
    }
    return w;
}

static void close_world(world *w) {
    for (int i = 0; i < DEBTORS; i++) {
        free(w->d[i].r);
        free(w->d[i].s);
        w_close(&w->d[i].home);
    }
    w_close(&w->v);
    free(w);
}

static void ask(debtor *d, uint64_t seed) {
    d->rng = seed;
    w_begin(&d->home, d->s, &d->r, 1, seed);
    CHECK(w_post(&d->home, d->s, d->layer, &d->rng) == 1);
    w_attend(&d->home, d->s, &d->r, d->layer);
}

static void collect(debtor *d, int32_t status) {
    inf_dist_collect(d->home.d, &d->s->b, w_step_lane(d->s));
    CHECK(d->s->seq_out[0].status == status);
    CHECK(status != INF_OK || w_error(d->s, d->r, 0, d->layer) < 1e-5);
    inf_dist_end(d->home.d);
}

/* Debtor PLUG's query is in work, and stays so. */
static void plug(world *w) {
    atomic_store(&fake.hold, true);
    ask(&w->d[PLUG], 1);
    CHECK(sem_wait(&fake.held) == 0);
}

static void unplug(world *w) {
    CHECK(sem_post(&fake.go) == 0);
    collect(&w->d[PLUG], INF_OK);
}

static void together(void) {
    const uint32_t pos0[DEBTORS] = {40, 41, 50, 57, 120}, rows[DEBTORS] = {1, 1, 2, 1, 3};
    world *w = open_world(pos0, rows);
    static float alone[DEBTORS][W_TOKENS * W_ROW];
    inf_device_stats s = {0};
    for (uint32_t i = 1; i < DEBTORS; i++) {
        debtor *d = &w->d[i];
        d->layer = 0;
        ask(d, 7 + i);
        collect(d, INF_OK);
        memcpy(alone[i], d->s->o, sizeof alone[i]);
    }
    uint32_t calls = atomic_load(&fake.calls);
    plug(w);
    for (uint32_t i = 1; i < DEBTORS; i++) {
        ask(&w->d[i], 7 + i);
    }
    unplug(w);
    for (uint32_t i = 1; i < DEBTORS; i++) {
        collect(&w->d[i], INF_OK);
        CHECK(memcmp(alone[i], w->d[i].s->o, sizeof alone[i]) == 0);
    }
    CHECK(atomic_load(&fake.calls) == calls + 2); /* the plug's, and one for four debtors */
    inf_dist_stats(w->v.d, &s);
    CHECK(s.served_messages == 4 + 1 + 4 && s.served_batches == 4 + 2 && s.refused_messages == 0);

    /* Debtors in different layers, of which the windows differ too, again in one call. */
    calls = atomic_load(&fake.calls);
    plug(w);
    for (uint32_t i = 1; i < DEBTORS; i++) {
        w->d[i].layer = i % 2 == 0 ? 0 : 1; /* windows: none and 40 */
        ask(&w->d[i], 70 + i);
    }
    unplug(w);
    for (uint32_t i = 1; i < DEBTORS; i++) {
        collect(&w->d[i], INF_OK);
    }
    CHECK(atomic_load(&fake.calls) == calls + 2);
    close_world(w);
}

/* Rows beyond what a batch takes go into another one. */
static void bounded(void) {
    const uint32_t pos0[DEBTORS] = {40, 40, 40, 40, 40}, rows[DEBTORS] = {1, 100, 100, 100, 1};
    world *w = open_world(pos0, rows);
    for (uint32_t i = 0; i < DEBTORS; i++) {
        w->d[i].layer = 0;
    }
    uint32_t calls = atomic_load(&fake.calls);
    plug(w);
    for (uint32_t i = 1; i < DEBTORS; i++) {
        ask(&w->d[i], 7 + i);
    }
    unplug(w);
    for (uint32_t i = 1; i < DEBTORS; i++) {
        collect(&w->d[i], INF_OK);
    }
    CHECK(atomic_load(&fake.calls) == calls + 3); /* 1, 100 + 100, 100 + 1 rows */
    close_world(w);
}

/* A malformed message, a stale span and a call that fails, each in a batch with good ones. */
static void alone(void) {
    const uint32_t pos0[DEBTORS] = {40, 41, 50, 77, 120}, rows[DEBTORS] = {1, 1, 2, 1, 3};
    world *w = open_world(pos0, rows);
    inf_link *c[2], *s[2];
    inf_err err;
    static raw_msg m;
    uint64_t rng = 3;
    for (uint32_t i = 0; i < DEBTORS; i++) {
        w->d[i].layer = 0;
    }
    w_lanes(INF_PROVIDER_SHM, &w->v, c, s);
    CHECK(inf_dist_peer_serve(w->v.d, 2, s[0], s[1], &err) == INF_OK); /* listed first */
    raw_query(&m, 1, 1, 1, 1, 0, &rng);
    raw_entries(&m)[0] = (inf_wire_entry){.n_tokens = W_BLOCK + 1}; /* no whole blocks */
    uint32_t calls = atomic_load(&fake.calls);
    plug(w);
    CHECK(raw_send(c[0], m.data, m.len) == INF_OK);
    w->d[2].r->spans[0].generation++;
    for (uint32_t i = 1; i < DEBTORS; i++) {
        ask(&w->d[i], 7 + i);
    }
    unplug(w);
    for (uint32_t i = 1; i < DEBTORS; i++) {
        collect(&w->d[i], i == 2 ? INF_ESTALE : INF_OK);
    }
    w->d[2].r->spans[0].generation--;
    CHECK(atomic_load(&fake.calls) == calls + 2);
    w_expect_status(&w->v, 2, INF_EPROTO);
    for (int i = 0; i < 2; i++) {
        raw_expect_death(c[i], INF_EPEER);
        inf_link_close(c[i]);
    }

    calls = atomic_load(&fake.calls);
    plug(w);
    atomic_store(&fake.poison, pos0[3]);
    for (uint32_t i = 1; i < DEBTORS; i++) {
        ask(&w->d[i], 17 + i);
    }
    unplug(w);
    for (uint32_t i = 1; i < DEBTORS; i++) {
        collect(&w->d[i], i == 3 ? INF_EPEER : INF_OK);
    }
    CHECK(atomic_load(&fake.calls) == calls + 2 + 4); /* the four again, each by itself */
    w_expect_status(&w->v, 13, INF_EINVAL);
    atomic_store(&fake.poison, 0);
    close_world(w);
}

static void expect_why(inst *w, uint32_t peer, int status, const char *why) {
    inf_err err;
    w_expect_status(w, peer, status);
    CHECK(inf_dist_peer_status(w->d, peer, &err) == status && strstr(err.message, why) != NULL);
}

/* All but PLUG ask together; the calls that it took. */
static uint32_t ask_all(world *w, uint64_t seed, uint32_t fails, int32_t status) {
    plug(w);
    uint32_t calls = atomic_load(&fake.calls);
    for (uint32_t i = 1; i < DEBTORS; i++) {
        ask(&w->d[i], seed + i);
    }
    if (fails == DEBTORS) {
        atomic_store(&fake.break_next, true);
    }
    unplug(w);
    for (uint32_t i = 1; i < DEBTORS; i++) {
        collect(&w->d[i], i == fails ? status : INF_OK);
    }
    return atomic_load(&fake.calls) - calls;
}

/* A lane fails and stays so; another one is as good as the first. Queries that it was asked are
 * asked again, and whose query breaks every lane loses its link, alone. */
static void broken_lanes(void) {
    const uint32_t pos0[DEBTORS] = {40, 41, 50, 77, 120}, rows[DEBTORS] = {1, 1, 2, 1, 3};
    world *w = open_world(pos0, rows);
    inf_err err;
    for (uint32_t i = 0; i < DEBTORS; i++) {
        w->d[i].layer = 0;
    }
    CHECK(ask_all(w, 7, 0, INF_OK) == 1);
    uint32_t opens = atomic_load(&fake.opens);
    CHECK(ask_all(w, 17, DEBTORS, INF_OK) == 1 + 4);
    CHECK(atomic_load(&fake.opens) == opens + 1);
    CHECK(ask_all(w, 27, 0, INF_OK) == 1);
    atomic_store(&fake.deadly, pos0[3]);
    CHECK(ask_all(w, 37, 3, INF_EPEER) == 1 + 4);
    CHECK(atomic_load(&fake.opens) == opens + 3); /* the batch's lane, and its own */
    atomic_store(&fake.deadly, 0);
    expect_why(&w->v, 13, INF_EIO, "this device failed: the lane is broken");
    for (uint32_t i = 0; i < DEBTORS; i++) {
        if (i != 3) {
            ask(&w->d[i], 47 + i);
            collect(&w->d[i], INF_OK);
            CHECK(inf_dist_peer_status(w->v.d, 10 + i, &err) == INF_OK);
        }
    }
    CHECK(inf_dist_fault(w->v.d, &err) == INF_OK);
    close_world(w);
}

/* No lane is to be had: for a while, or because the device is over, which is the instance's own
 * fault and said once. */
static void no_lanes(void) {
    const uint32_t pos0[DEBTORS] = {40, 41, 50, 77, 120}, rows[DEBTORS] = {1, 1, 2, 1, 3};
    world *w = open_world(pos0, rows);
    inf_link *c[2], *s[2];
    inf_err err;
    for (uint32_t i = 0; i < DEBTORS; i++) {
        w->d[i].layer = 0;
    }
    atomic_store(&fake.refuse, INF_ENOMEM);
    atomic_store(&fake.break_next, true);
    for (uint32_t i = 0; i < 2; i++) {
        ask(&w->d[i], 7);
        collect(&w->d[i], INF_EPEER);
        expect_why(&w->v, 10 + i, INF_ENOMEM, "no such lane today");
    }
    /* The second query waited for its try: 10 ms from a moment before the first. */
    CHECK(atomic_load(&fake.gap_ns) >= 2000000);
    atomic_store(&fake.refuse, INF_OK);
    ask(&w->d[2], 7); /* within the rest that follows a fault */
    collect(&w->d[2], INF_OK);
    CHECK(inf_dist_fault(w->v.d, &err) == INF_OK);

    atomic_store(&fake.refuse, INF_EIO);
    atomic_store(&fake.break_next, true);
    for (uint32_t i = 3; i < 5; i++) {
        ask(&w->d[i], 7);
        collect(&w->d[i], INF_EPEER);
        expect_why(&w->v, 10 + i, INF_EIO, "this device failed: no such lane today");
    }
    atomic_store(&fake.refuse, INF_OK);
    CHECK(inf_dist_fault(w->v.d, &err) == INF_EIO &&
          strcmp(err.message, "no such lane today") == 0);
    w_lanes(INF_PROVIDER_SHM, &w->v, c, s);
    CHECK(inf_dist_peer_serve(w->v.d, 30, s[0], s[1], &err) == INF_EIO);
    CHECK(strstr(err.message, "cannot take a peer, this device failed: no such") != NULL);
    for (int i = 0; i < 2; i++) {
        raw_expect_death(c[i], INF_EPEER);
        inf_link_close(c[i]);
    }
    close_world(w);
}

int main(void) {
    CHECK(sem_init(&fake.held, 0, 0) == 0 && sem_init(&fake.go, 0, 0) == 0);
    together();
    bounded();
    alone();
    broken_lanes();
    no_lanes();
    return 0;
}
