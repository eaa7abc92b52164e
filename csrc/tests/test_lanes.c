/* Lanes that copy blocks and fail: what was to be copied is copied on another lane; what fails on
 * every lane ends a move, and neither a peer nor the queries beside it; and a device that has no
 * lanes any more says so. test_serve has the lane that answers, test_direct copies between pools.
 *
 * The device is a fake around the CPU's: a lane that is broken does nothing, and says so in every
 * sync until it is closed. */
#include "wire_raw.h"

enum { ALWAYS = 1 << 30 };

static struct {
    _Atomic int break_out, break_in; /* copies until which one breaks its lane, counted down */
    _Atomic(inf_lane *) broken;
    atomic_int refuse; /* how opening a lane fails */
    _Atomic uint32_t opens, closes;
    inf_backend_ops real;
} fake;

static int fake_open(inf_backend *b, const inf_lane_config *c, inf_lane **out, inf_err *err) {
    int refuse = atomic_load(&fake.refuse);
    atomic_fetch_add(&fake.opens, 1);
    if (refuse != INF_OK) {
        snprintf(err->message, sizeof err->message, "no such lane today");
        *out = NULL;
        return refuse;
    }
    return fake.real.lane_open(b, c, out, err);
}

static void fake_close(inf_lane *lane) {
    inf_lane *mine = lane;
    atomic_fetch_add(&fake.closes, lane != NULL);
    atomic_compare_exchange_strong(&fake.broken, &mine, NULL);
    fake.real.lane_close(lane);
}

static bool works(inf_lane *lane, _Atomic int *breaks) {
    int left = atomic_load(breaks);
    if (left > 0) {
        atomic_store(breaks, left == ALWAYS ? ALWAYS : left - 1);
        atomic_store(&fake.broken, lane);
    }
    return atomic_load(&fake.broken) != lane;
}

static void fake_copy_out(inf_lane *lane, void *host, const void *device, uint64_t bytes) {
    if (works(lane, &fake.break_out)) {
        fake.real.copy_out(lane, host, device, bytes);
    }
}

static void fake_copy_in(inf_lane *lane, void *device, const void *host, uint64_t bytes) {
    if (works(lane, &fake.break_in)) {
        fake.real.copy_in(lane, device, host, bytes);
    }
}

static int fake_sync(inf_lane *lane, inf_err *err) {
    if (lane == atomic_load(&fake.broken)) {
        snprintf(err->message, sizeof err->message, "the lane is broken");
        return INF_EIO;
    }
    return fake.real.sync(lane, err);
}

static void use_fake(void) {
    inf_backend *b = w_backend();
    inf_backend_ops *ops = (inf_backend_ops *)(uintptr_t)b->ops;
    fake.real = *ops;
    ops->lane_open = fake_open;
    ops->lane_close = fake_close;
    ops->copy_out = fake_copy_out;
    ops->copy_in = fake_copy_in;
    ops->sync = fake_sync;
    b->ops->close(b);
}

typedef struct {
    inst a, b; /* a is 2 to b, and b is 1 to a */
    req *r;
    step *s;
    uint64_t rng, steps;
} world;

static world *open_world(uint32_t provider) {
    world *w = calloc(1, sizeof *w);
    CHECK(w != NULL);
    w->a = w_open(128);
    w->b = w_open(128);
    w->rng = 9;
    w_join(provider, &w->a, 1, &w->b, 2);
    w->r = w_req(&w->a, 120, 1, &w->rng);
    w->s = calloc(1, sizeof *w->s);
    CHECK(w->s != NULL);
    return w;
}

static void close_world(world *w) {
    w_close(&w->a);
    w_close(&w->b);
    free(w->r);
    free(w->s);
    free(w);
}

/* Three more blocks are lent, and a step over all that was lent is right. */
static void lend_and_step(world *w) {
    w_lend(&w->a, w->r, &w->b, 1, 2, 3);
    w_begin(&w->a, w->s, &w->r, 1, ++w->steps);
    CHECK(w_layer(&w->a, w->s, &w->r, 0, &w->rng) == 1);
    CHECK(w->s->seq_out[0].status == INF_OK && w_error(w->s, w->r, 0, 0) < 1e-5);
    inf_dist_end(w->a.d);
}

/* A move that nobody counts on; its status. */
static int32_t move(world *w) {
    inf_err err;
    uint32_t handle = w->b.next_handle++;
    int32_t theirs[2] = {0, 1}, mine[2] = {w->r->blocks[20], w->r->blocks[21]};
    CHECK(inf_dist_span_set(w->b.d, 2, handle, 1, theirs, 2, &err) == INF_OK);
    CHECK(inf_dist_move_post(w->a.d, 1, handle, 1, 0, mine, 2, 1, &err) == INF_OK);
    int32_t status = w_move_wait(&w->a).status;
    CHECK(inf_dist_span_close(w->b.d, handle, 1, &err) == INF_OK);
    return status;
}

static void expect_peers(world *w) {
    inf_err err;
    CHECK(inf_dist_peer_status(w->a.d, 1, &err) == INF_OK);
    CHECK(inf_dist_peer_status(w->b.d, 2, &err) == INF_OK);
    CHECK(inf_dist_fault(w->a.d, &err) == INF_OK && inf_dist_fault(w->b.d, &err) == INF_OK);
}

/* breaks: at the sender, or at the receiver. */
static void broken(uint32_t provider, _Atomic int *breaks, int32_t status) {
    world *w = open_world(provider);
    lend_and_step(w);
    uint32_t opens = atomic_load(&fake.opens), closes = atomic_load(&fake.closes);
    atomic_store(breaks, 1);
    lend_and_step(w);
    CHECK(atomic_load(breaks) == 0 && atomic_load(&fake.opens) == opens + 1);
    CHECK(atomic_load(&fake.closes) == closes + 1);
    lend_and_step(w);
    CHECK(atomic_load(&fake.opens) == opens + 1);
    for (int i = 0; i < 3; i++) {
        atomic_store(breaks, ALWAYS);
        CHECK(move(w) == status);
        atomic_store(breaks, 0);
        CHECK(atomic_load(&fake.opens) == opens + 3 + 2 * (uint32_t)i);
    }
    lend_and_step(w);
    expect_peers(w);
    close_world(w);
}

/* While there is no lane moves wait, and go on when there is one. */
/* After three tries; arg: how many there were before. */
static void *relent(void *arg) {
    while (atomic_load(&fake.opens) < *(const uint32_t *)arg + 3) {
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    atomic_store(&fake.refuse, INF_OK);
    return NULL;
}

static void no_lane(_Atomic int *breaks) {
    world *w = open_world(INF_PROVIDER_SHM);
    pthread_t thread;
    lend_and_step(w);
    uint32_t opens = atomic_load(&fake.opens);
    atomic_store(&fake.refuse, INF_ENOMEM);
    atomic_store(breaks, 1);
    CHECK(pthread_create(&thread, NULL, relent, &opens) == 0);
    lend_and_step(w);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(atomic_load(&fake.opens) - opens < 12); /* a rest after each try, and a longer one */
    lend_and_step(w);
    expect_peers(w);
    close_world(w);
}

/* Moves do not wait for ever; peers are none the worse. */
static void no_lane_for_long(_Atomic int *breaks, int32_t status) {
    world *w = open_world(INF_PROVIDER_SHM);
    lend_and_step(w);
    atomic_store(&fake.refuse, INF_ENOMEM);
    atomic_store(breaks, 1);
    CHECK(move(w) == status);
    expect_peers(w);
    atomic_store(&fake.refuse, INF_OK);
    while (move(w) != INF_OK) { /* refused at once, but for one try now and then */
        nanosleep(&(struct timespec){0, 100000000}, NULL);
    }
    lend_and_step(w);
    close_world(w);
}

/* The device is over. */
static void no_device(_Atomic int *breaks) {
    world *w = open_world(INF_PROVIDER_SHM);
    inf_err err;
    lend_and_step(w);
    atomic_store(&fake.refuse, INF_EIO);
    atomic_store(breaks, ALWAYS);
    CHECK(move(w) < 0);
    bool out = breaks == &fake.break_out;
    inst *over = out ? &w->a : &w->b, *well = out ? &w->b : &w->a;
    w_expect_status(over, out ? 1 : 2, INF_EIO);
    CHECK(inf_dist_peer_status(over->d, out ? 1 : 2, &err) == INF_EIO &&
          strstr(err.message, "this device failed: no such lane today") != NULL);
    CHECK(inf_dist_fault(over->d, &err) == INF_EIO);
    CHECK(err.code == INF_EIO && strcmp(err.message, "no such lane today") == 0);
    CHECK(inf_dist_fault(well->d, &err) == INF_OK);
    w_expect_status(well, out ? 2 : 1, INF_EPEER);
    atomic_store(&fake.refuse, INF_OK);
    atomic_store(breaks, 0);
    close_world(w);
}

int main(void) {
    use_fake();
    for (uint32_t provider = INF_PROVIDER_SHM; provider <= INF_PROVIDER_TCP; provider++) {
        broken(provider, &fake.break_out, INF_EIO);
        broken(provider, &fake.break_in, INF_ESTALE);
    }
    no_lane(&fake.break_out);
    no_lane(&fake.break_in);
    no_lane_for_long(&fake.break_out, INF_EIO);
    no_lane_for_long(&fake.break_in, INF_ESTALE);
    no_device(&fake.break_out);
    no_device(&fake.break_in);
    CHECK(atomic_load(&fake.broken) == NULL);
    return 0;
}
