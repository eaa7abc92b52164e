/* Slots as memory of the device: what is pinned, and when a slot is the peer's again.
 *
 * The device is a fake around the CPU's that works when it is synced, as a GPU may: merge keeps the
 * pointers, and reads them in sync. What dist gives back, unmaps or overwrites before that shows as
 * a wrong result or a fault. */
#include "wire_raw.h"

#include "held.h"

enum { MOST = 64 };

typedef struct {
    inf_lane *lane;
    uint32_t row0;
    int32_t rows;
    const float *o2, *lse2;
} waiting;

static struct {
    pthread_mutex_t lock;
    uint8_t *at[MOST]; /* pinned */
    uint64_t bytes[MOST];
    uint32_t n, pins, refuse_after, wrong;
    waiting merges[MOST]; /* the step thread's */
    uint32_t n_merges, late;
    bool defer;
    _Atomic(inf_backend *) slow; /* its next unpin waits for the test */
    held_call unpinning;
} fake = {.lock = PTHREAD_MUTEX_INITIALIZER, .refuse_after = UINT32_MAX};

static int fake_pin(inf_backend *b, void *host, uint64_t bytes) {
    uint8_t *at = host;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    (void)b;
    pthread_mutex_lock(&fake.lock);
    fake.wrong += (uintptr_t)host % page != 0 || bytes % page != 0 || bytes == 0;
    for (uint32_t i = 0; i < fake.n; i++) {
        fake.wrong += at < fake.at[i] + fake.bytes[i] && fake.at[i] < at + bytes;
    }
    bool takes = fake.n < MOST && fake.pins++ < fake.refuse_after;
    if (takes) {
        fake.at[fake.n] = at;
        fake.bytes[fake.n++] = bytes;
        /* Every page is there to be used. */
        for (uint64_t i = 0; i < bytes; i += page) {
            ((volatile uint8_t *)at)[i] = ((volatile uint8_t *)at)[i];
        }
    }
    pthread_mutex_unlock(&fake.lock);
    return takes ? INF_OK : INF_ENOMEM;
}

static void fake_unpin(inf_backend *b, void *host) {
    inf_backend *slow = b;
    if (atomic_compare_exchange_strong(&fake.slow, &slow, NULL)) {
        held_here(&fake.unpinning);
    }
    pthread_mutex_lock(&fake.lock);
    for (uint32_t i = 0; i < fake.n; i++) {
        if (fake.at[i] == host) {
            volatile uint8_t *mapped = host; /* it is still there */
            (void)mapped[fake.bytes[i] - 1];
            fake.at[i] = fake.at[--fake.n];
            fake.bytes[i] = fake.bytes[fake.n];
            break;
        }
    }
    pthread_mutex_unlock(&fake.lock);
}

static bool pinned(const void *p, uint64_t bytes) {
    const uint8_t *at = p;
    bool found = false;
    pthread_mutex_lock(&fake.lock);
    for (uint32_t i = 0; i < fake.n; i++) {
        found |= at >= fake.at[i] && at + bytes <= fake.at[i] + fake.bytes[i];
    }
    pthread_mutex_unlock(&fake.lock);
    return found;
}

/* Workers pin and unpin while the test looks: how many are pinned now, and how often it was done.
 */
static uint32_t pinned_now(void) {
    pthread_mutex_lock(&fake.lock);
    uint32_t n = fake.n;
    pthread_mutex_unlock(&fake.lock);
    return n;
}

static uint32_t times_pinned(void) {
    pthread_mutex_lock(&fake.lock);
    uint32_t n = fake.pins;
    pthread_mutex_unlock(&fake.lock);
    return n;
}

/* Merges of a lane wait for that lane's sync. Workers sync lanes of their own. */
static int fake_merge(inf_lane *lane, uint32_t row0, int32_t rows, const float *o2,
                      const float *lse2, int32_t stride) {
    if (!fake.defer || !pinned(o2, (uint64_t)rows * W_ROW * 4)) {
        return w_merge(lane, row0, rows, o2, lse2, stride);
    }
    CHECK(pinned(lse2, (uint64_t)rows * W_HEADS * 4));
    pthread_mutex_lock(&fake.lock);
    CHECK(fake.n_merges < MOST);
    fake.merges[fake.n_merges++] = (waiting){lane, row0, rows, o2, lse2};
    pthread_mutex_unlock(&fake.lock);
    return 1;
}

static int fake_sync(inf_lane *lane, inf_err *err) {
    (void)err;
    pthread_mutex_lock(&fake.lock);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < fake.n_merges; i++) {
        waiting m = fake.merges[i];
        if (m.lane == lane) {
            w_merge(m.lane, m.row0, m.rows, m.o2, m.lse2, W_HEADS);
            fake.late++;
        } else {
            fake.merges[kept++] = m;
        }
    }
    if (kept < fake.n_merges) { /* what no worker of these tests has cause to do */
        fake.n_merges = kept;
    }
    pthread_mutex_unlock(&fake.lock);
    return INF_OK;
}

static void use_fake(void) {
    inf_backend *b = w_backend();
    inf_backend_ops *ops = (inf_backend_ops *)(uintptr_t)b->ops;
    ops->host_pin = fake_pin;
    ops->host_unpin = fake_unpin;
    ops->merge = fake_merge;
    ops->sync = fake_sync;
    b->ops->close(b);
}

/* Both ends of a query link are pinned while it is there, in whole pages, once each. */
static void pins(uint32_t provider) {
    inst a = w_open(128), b = w_open(128);
    inf_err err;
    uint32_t before = times_pinned();
    w_join(provider, &a, 1, &b, 2);
    bool slots = provider == INF_PROVIDER_SHM;
    CHECK(slots ? pinned_now() > 0 : pinned_now() == 0 && times_pinned() == before);
    w_join(provider, &b, 3, &a, 4);
    CHECK(inf_dist_peer_detach(a.d, 1, &err) == INF_OK);
    CHECK(inf_dist_peer_detach(b.d, 2, &err) == INF_OK);
    uint32_t left = pinned_now();
    CHECK(slots ? left > 0 : left == 0);
    w_close(&b); /* a's end dies with it, and is unpinned by whichever thread closes it */
    w_expect_status(&a, 4, INF_EPEER);
    w_close(&a);
    CHECK(fake.n == 0 && fake.wrong == 0);

    fake.refuse_after = fake.pins + 1; /* one end at best; results are the same */
    a = w_open(128);
    b = w_open(128);
    w_join(provider, &a, 1, &b, 2);
    uint64_t rng = 4;
    req *r = w_req(&a, 40, 2, &rng);
    w_lend(&a, r, &b, 1, 2, 5);
    step *s = calloc(1, sizeof *s);
    w_begin(&a, s, &r, 1, 1);
    CHECK(w_layer(&a, s, &r, 0, &rng) == 1 && w_error(s, r, 0, 0) < 1e-5);
    free(s);
    free(r);
    w_close(&a);
    w_close(&b);
    CHECK(fake.n == 0);
    fake.refuse_after = UINT32_MAX;
}

/* Steps on a device that reads partials when it is synced. One creditor dies while its partial is
 * being read: its memory is there until it was. */
static void deferred(void) {
    inst a = w_open(128), b = w_open(128), gone = w_open(128);
    w_join(INF_PROVIDER_SHM, &a, 2, &b, 2);
    w_join(INF_PROVIDER_SHM, &a, 1, &gone, 2);
    uint64_t rng = 8;
    req *r[2] = {w_req(&a, 40, 2, &rng), w_req(&a, 40, 1, &rng)};
    w_lend(&a, r[0], &gone, 1, 2, 2);
    w_lend(&a, r[0], &b, 2, 2, 2);
    w_lend(&a, r[1], &b, 2, 2, 4);
    step *s = calloc(1, sizeof *s);
    fake.defer = true;
    fake.late = 0;
    for (uint64_t id = 1; id < 6; id++) {
        w_begin(&a, s, r, 2, id);
        for (int32_t l = 0; l < 2; l++) {
            w_layer(&a, s, r, l, &rng);
            CHECK(fake.n_merges == 3); /* of the layer, none is done */
            if (l == 1) {
                inf_dist_end(a.d); /* without a sync before it, it makes one */
            } else {
                fake_sync(w_step_lane(s), NULL);
            }
            CHECK(fake.n_merges == 0 && w_error(s, r[0], 0, l) < 1e-5);
            CHECK(w_error(s, r[1], 1, l) < 1e-5);
        }
    }
    CHECK(fake.late == 5 * 2 * 3);
    w_begin(&a, s, r, 2, 9);
    w_layer(&a, s, r, 0, &rng);
    CHECK(fake.n_merges == 3);
    w_close(&gone);
    w_expect_status(&a, 1, INF_EPEER);
    CHECK(fake.n_merges == 3); /* the step has the link still */
    inf_dist_end(a.d);
    CHECK(fake.n_merges == 0 && w_error(s, r[0], 0, 0) < 1e-5 && w_error(s, r[1], 1, 0) < 1e-5);
    fake.defer = false;
    free(s);
    free(r[0]);
    free(r[1]);
    w_close(&a);
    w_close(&b);
    CHECK(fake.n == 0 && fake.wrong == 0);
}

/* The creditor sees when it has its slot back: after the sync, not with the merge. */
static void given_back(void) {
    inst a = w_open(128), b = w_open(128);
    inf_link *c[2], *raw[2];
    inf_err err;
    static raw_msg m;
    const uint8_t *msg = NULL;
    uint64_t len = 0, rng = 5;
    w_join(INF_PROVIDER_SHM, &a, 2, &b, 2);
    w_lanes(INF_PROVIDER_SHM, &a, c, raw);
    CHECK(inf_dist_peer_attach(a.d, 1, c[0], c[1], &err) == INF_OK);
    req *r = w_req(&a, 40, 1, &rng);
    w_lend(&a, r, &b, 2, 2, 4); /* what peer 1 gets is of no matter: its numbers are random */
    r->spans[0].peer = 1;
    step *s = calloc(1, sizeof *s);
    for (int defer = 0; defer < 2; defer++) {
        fake.defer = defer;
        w_begin(&a, s, &r, 1, 1 + (uint64_t)defer);
        CHECK(w_post(&a, s, 0, &rng) == 1 && raw_receive(raw[0], &msg, &len) == INF_OK);
        raw_partial(&m, (const inf_wire_head *)(const void *)msg, &rng);
        inf_link_release(raw[0]);
        CHECK(raw_send(raw[0], m.data, m.len) == INF_OK);
        inf_dist_collect(a.d, &s->b, w_step_lane(s));
        CHECK(s->seq_out[0].status == INF_OK && fake.n_merges == (uint32_t)defer);
        if (defer) {
            void *slot = NULL; /* of two: a message that nobody takes fills the other one */
            CHECK(raw_send(raw[0], m.data, m.len) == INF_OK);
            CHECK(inf_link_prepare(raw[0], &slot) == INF_AGAIN);
        }
        inf_dist_end(a.d);
        void *slot = NULL;
        CHECK(inf_link_prepare(raw[0], &slot) == INF_OK && fake.n_merges == 0);
    }
    fake.defer = false;
    inf_link_close(raw[0]);
    inf_link_close(raw[1]);
    free(s);
    free(r);
    w_close(&a);
    w_close(&b);
}

/* ---- while one link is being unpinned, for which a device may take its time, steps go on ---- */

enum { BY_MOVER, BY_SERVER, BY_STEP, BY_CALLER, WAYS };

/* Links for a peer that has some. */
static void *attach_again(void *arg) {
    inst *a = arg;
    inf_link *c[2], *s[2];
    inf_err err;
    w_lanes(INF_PROVIDER_SHM, a, c, s);
    CHECK(inf_dist_peer_attach(a->d, 2, c[0], c[1], &err) == INF_EINVAL);
    inf_link_close(s[0]);
    inf_link_close(s[1]);
    return NULL;
}

static void beside_an_unpin(int way) {
    inst a = w_open(128), b = w_open(128), gone = w_open(128);
    pthread_t caller;
    inf_err err;
    uint64_t rng = 8;
    w_join(INF_PROVIDER_SHM, &a, 2, &b, 2);
    if (way == BY_SERVER) {
        w_join(INF_PROVIDER_SHM, &gone, 2, &a, 1);
    } else {
        w_join(INF_PROVIDER_SHM, &a, 1, &gone, 2);
    }
    req *r[2] = {w_req(&a, 40, 2, &rng), w_req(&a, 40, 1, &rng)};
    w_lend(&a, r[0], &b, 2, 2, 2);
    if (way == BY_STEP) {
        w_lend(&a, r[1], &gone, 1, 2, 4);
    }
    step *s = calloc(1, sizeof *s);
    if (way == BY_STEP) { /* the step has the link when its peer dies */
        w_begin(&a, s, r, 2, 1);
        w_layer(&a, s, r, 0, &rng);
    }
    atomic_store(&fake.slow, a.backend);
    if (way == BY_CALLER) {
        CHECK(pthread_create(&caller, NULL, attach_again, &a) == 0);
    } else {
        w_close(&gone);
    }
    if (way != BY_STEP) {
        held_await(&fake.unpinning);
    } else {
        w_expect_status(&a, 1, INF_EPEER);
    }
    held_begin(&fake.unpinning);
    if (way != BY_STEP) {
        w_begin(&a, s, r, 2, 1);
    }
    w_layer(&a, s, r, 1, &rng);
    CHECK(s->seq_out[0].status == INF_OK && w_error(s, r[0], 0, 1) < 1e-5);
    CHECK(s->seq_out[1].status == (way == BY_STEP ? INF_EPEER : INF_OK));
    inf_dist_end(a.d);
    CHECK(!atomic_load(&fake.unpinning.late));
    if (way == BY_STEP) {
        held_await(&fake.unpinning);
    }
    held_end(&fake.unpinning);
    if (way == BY_CALLER) {
        CHECK(pthread_join(caller, NULL) == 0);
        w_close(&gone);
    }
    CHECK(inf_dist_peer_detach(a.d, 1, &err) == INF_OK);
    CHECK(inf_dist_peer_detach(a.d, 2, &err) == INF_OK && inf_dist_peer_detach(b.d, 2, &err) == 0);
    CHECK(pinned_now() == 0); /* a detach waits until what is taken down is gone */
    free(s);
    free(r[0]);
    free(r[1]);
    w_close(&a);
    w_close(&b);
}

int main(void) {
    held_open(&fake.unpinning);
    use_fake();
    pins(INF_PROVIDER_SHM);
    pins(INF_PROVIDER_TCP);
    deferred();
    given_back();
    for (int way = 0; way < WAYS; way++) {
        beside_an_unpin(way);
    }
    return 0;
}
