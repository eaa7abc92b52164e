/* Moves by copies from pool to pool: a fake around the CPU's backend shares pools, opens them by
 * their address, and counts. Who cannot open falls back to messages, and says why; a peer that
 * grants what its pool has not is ended before a byte is copied. */
#include "wire_raw.h"

#include "dist/internal.h"

#include <semaphore.h>

static struct {
    atomic_uint exports, opens, open, copies;
    atomic_bool refuse_export, refuse_open;
    atomic_uint_least64_t bytes; /* that are there of an opened pool */
    sem_t held, go;              /* an export waits between them */
    atomic_bool hold;
} fake = {.bytes = UINT64_MAX};

static int fake_export(inf_backend *b, void *pool, inf_pool_key *out, const char **why) {
    (void)b;
    *why = "no export today";
    if (atomic_exchange(&fake.hold, false)) {
        CHECK(sem_post(&fake.held) == 0 && sem_wait(&fake.go) == 0);
    }
    if (atomic_load(&fake.refuse_export)) {
        return INF_EUNSUPPORTED;
    }
    *out = (inf_pool_key){.process = 77, .address = (uint64_t)(uintptr_t)pool};
    atomic_fetch_add(&fake.exports, 1);
    return INF_OK;
}

static uint8_t *fake_open(inf_backend *b, const inf_pool_key *key, uint64_t *bytes,
                          const char **why) {
    (void)b;
    *bytes = atomic_load(&fake.bytes);
    *why = "no opening today";
    if (atomic_load(&fake.refuse_open) || key->process != 77) {
        return NULL;
    }
    atomic_fetch_add(&fake.opens, 1);
    atomic_fetch_add(&fake.open, 1);
    return (uint8_t *)(uintptr_t)key->address;
}

static void fake_close(inf_backend *b, const inf_pool_key *key, uint8_t *pool) {
    (void)b;
    CHECK((uint64_t)(uintptr_t)pool == key->address);
    atomic_fetch_sub(&fake.open, 1);
}

static void fake_copy(inf_lane *lane, void *to, const void *from, uint64_t bytes) {
    (void)lane;
    memcpy(to, from, bytes);
    atomic_fetch_add(&fake.copies, 1);
}

static void use_fake(void) {
    inf_backend *b = w_backend();
    inf_backend_ops *ops = (inf_backend_ops *)(uintptr_t)b->ops;
    ops->pool_export = fake_export;
    ops->pool_open = fake_open;
    ops->pool_close = fake_close;
    ops->copy = fake_copy;
    b->ops->close(b);
}

/* Three requests move, and a step over them is right; returns how many copies that took. */
static uint32_t lend_and_step(uint32_t provider, inf_peer_rails *rails) {
    inst a = w_open(256), b = w_open(256);
    inf_err err;
    uint32_t copies = atomic_load(&fake.copies);
    w_join(provider, &a, 1, &b, 2);
    uint64_t rng = 12;
    req *r[3];
    for (int i = 0; i < 3; i++) {
        r[i] = w_req(&a, 60 + 20 * (uint32_t)i, 1, &rng);
        w_lend(&a, r[i], &b, 1, 2, 7 + i); /* compares every block */
    }
    step *s = calloc(1, sizeof *s);
    w_begin(&a, s, r, 3, 1);
    CHECK(w_layer(&a, s, r, 0, &rng) == 1);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK(s->seq_out[i].status == INF_OK && w_error(s, r[i], i, 0) < 1e-5);
        free(r[i]);
    }
    free(s);
    CHECK(inf_dist_peer_rails(a.d, 1, rails, &err) == INF_OK);
    inf_device_stats st = {0};
    inf_dist_stats(a.d, &st);
    CHECK(st.moved_blocks == 7 + 8 + 9);
    w_close(&a);
    w_close(&b);
    CHECK(atomic_load(&fake.open) == 0);
    return atomic_load(&fake.copies) - copies;
}

static void ways(void) {
    inf_peer_rails rails;
    CHECK(lend_and_step(INF_PROVIDER_SHM, &rails) >= 7 + 8 + 9);
    CHECK(rails.puts == 1 && rails.no_puts[0] == 0 && atomic_load(&fake.opens) == 1);
    CHECK(lend_and_step(INF_PROVIDER_TCP, &rails) == 0 && rails.puts == 0);
    CHECK(atomic_load(&fake.opens) == 1 && atomic_load(&fake.exports) == 1);
    atomic_store(&fake.refuse_open, true);
    CHECK(lend_and_step(INF_PROVIDER_SHM, &rails) == 0 && rails.puts == 0);
    CHECK(strcmp(rails.no_puts, "no opening today") == 0);
    atomic_store(&fake.refuse_open, false);
    atomic_store(&fake.bytes, 4096); /* less than the note says */
    CHECK(lend_and_step(INF_PROVIDER_SHM, &rails) == 0 && rails.puts == 0);
    CHECK(strstr(rails.no_puts, "smaller than it says") != NULL);
    atomic_store(&fake.bytes, UINT64_MAX);
    atomic_store(&fake.refuse_export, true);
    CHECK(lend_and_step(INF_PROVIDER_SHM, &rails) == 0 && rails.puts == 0);
    atomic_store(&fake.refuse_export, false);
}

/* The server's end of a move lane, played by the test: it tells of a pool of 8 blocks, and grants
 * block `at` of it. dies: that must end the peer, and nothing be copied. */
static void lying(uint64_t at, uint64_t block_bytes_off, bool dies) {
    inst a = w_open(64);
    inf_link *c[2], *raw[2];
    inf_err err;
    uint64_t block = a.kv.block_bytes, len = 0;
    const uint8_t *msg = NULL;
    uint8_t *pool = calloc(8, block);
    struct {
        uint32_t magic, bytes;
        uint64_t block_bytes, num_blocks;
        inf_pool_key key;
    } note = {0x504e4931,
              sizeof note,
              block + block_bytes_off,
              8,
              {.process = 77, .address = (uint64_t)(uintptr_t)pool}};
    w_lanes(INF_PROVIDER_SHM, &a, c, raw);
    CHECK(inf_link_tell(raw[1], &note, sizeof note) == INF_OK);
    CHECK(inf_link_tell(raw[1], &note, sizeof note) == INF_EFULL);
    CHECK(inf_dist_peer_attach(a.d, 1, c[0], c[1], &err) == INF_OK);
    int32_t mine = 3;
    uint32_t copies = atomic_load(&fake.copies);
    memset(w_block(&a, 3), 0x5a, block);
    CHECK(inf_dist_move_post(a.d, 1, 5, 6, 0, &mine, 1, 9, &err) == INF_OK);
    CHECK(raw_receive(raw[1], &msg, &len) == INF_OK);
    inf_wire_head h;
    inf_wire_move m;
    memcpy(&h, msg, sizeof h);
    memcpy(&m, msg + sizeof h, sizeof m);
    inf_link_release(raw[1]);
    if (block_bytes_off != 0) { /* another shape: not opened, so that the blocks come themselves */
        CHECK(h.kind == INF_WIRE_MOVE && len == inf_wire_move_head() + block);
    } else {
        CHECK(h.kind == INF_WIRE_ASK);
        static _Alignas(64) uint8_t answer[4096];
        memset(answer, 0, sizeof answer);
        inf_grant g = {.address = at * block, .bytes = block};
        h.kind = INF_WIRE_GRANT;
        h.n_entries = 1;
        h.bytes = inf_wire_grant_bytes(1);
        memcpy(answer, &h, sizeof h);
        memcpy(answer + sizeof h, &m, sizeof m);
        memcpy(answer + inf_wire_move_head(), &g, sizeof g);
        CHECK(raw_send(raw[1], answer, h.bytes) == INF_OK);
        int status = raw_receive(raw[1], &msg, &len);
        CHECK(dies ? status == INF_EPEER : status == INF_OK);
        if (!dies) {
            memcpy(&h, msg, sizeof h);
            CHECK(h.kind == INF_WIRE_LANDED &&
                  memcmp(pool + at * block, w_block(&a, 3), block) == 0);
        }
    }
    CHECK(atomic_load(&fake.copies) - copies == (dies || block_bytes_off != 0 ? 0 : 1));
    if (dies) {
        w_expect_status(&a, 1, INF_EPROTO);
    }
    inf_link_close(raw[0]);
    inf_link_close(raw[1]);
    w_close(&a);
    CHECK(atomic_load(&fake.open) == 0);
    free(pool);
}

/* Notes: once, whole, over shared memory only. */
static void notes(void) {
    inf_link *c, *s;
    char text[INF_LINK_TOLD] = "of the client", got[INF_LINK_TOLD];
    w_link(INF_PROVIDER_SHM, 4096, &c, &s, NULL);
    CHECK(inf_link_told(s, got, sizeof got) == INF_AGAIN);
    CHECK(inf_link_tell(c, text, sizeof text + 1) == INF_EINVAL);
    CHECK(inf_link_tell(c, text, sizeof text) == INF_OK);
    CHECK(inf_link_told(s, got, sizeof got) == INF_OK && memcmp(got, text, sizeof got) == 0);
    CHECK(inf_link_told(c, got, sizeof got) == INF_AGAIN);
    CHECK(inf_link_tell(s, "server", 7) == INF_OK);
    CHECK(inf_link_told(c, got, sizeof got) == INF_OK && strcmp(got, "server") == 0);
    CHECK(got[8] == 0 && inf_link_told(c, got, sizeof got + 1) == INF_EINVAL);
    inf_link_close(c);
    inf_link_close(s);
    w_link(INF_PROVIDER_TCP, 4096, &c, &s, NULL);
    CHECK(inf_link_tell(c, text, 1) == INF_EUNSUPPORTED);
    CHECK(inf_link_told(s, got, 1) == INF_EUNSUPPORTED);
    inf_link_close(c);
    inf_link_close(s);
}

/* A sender that is late: it has a grant, and its lanes end. What it may still copy into is not
 * given to others: the span's close waits as long as a sender may be late (land.c), 5 s. */
static void late(void) {
    inst b = w_open(64);
    inf_link *raw[2], *s[2];
    inf_err err;
    static raw_msg ask;
    const uint8_t *msg = NULL;
    uint64_t len = 0;
    w_lanes(INF_PROVIDER_SHM, &b, raw, s);
    CHECK(inf_dist_peer_serve(b.d, 2, s[0], s[1], &err) == INF_OK);
    CHECK(inf_dist_span_set(b.d, 2, 1, 1, (int32_t[]){9, 10}, 2, &err) == INF_OK);
    ask.len = inf_wire_move_head();
    *raw_head(&ask) =
        (inf_wire_head){.magic = INF_WIRE_MAGIC, .kind = INF_WIRE_ASK, .bytes = ask.len};
    *raw_move(&ask) = (inf_wire_move){.handle = 1, .generation = 1, .n = 2, .ticket = 8};
    CHECK(raw_send(raw[1], ask.data, ask.len) == INF_OK);
    CHECK(raw_receive(raw[1], &msg, &len) == INF_OK);
    inf_wire_head h;
    memcpy(&h, msg, sizeof h);
    CHECK(h.kind == INF_WIRE_GRANT && h.n_entries > 0 && len == inf_wire_grant_bytes(h.n_entries));
    uint64_t granted = inf_now();
    inf_link_close(raw[0]);
    inf_link_close(raw[1]);
    w_expect_status(&b, 2, INF_EPEER);
    CHECK(inf_dist_peer_detach(b.d, 2, &err) == INF_OK);
    CHECK(inf_dist_span_close(b.d, 1, 1, &err) == INF_OK);
    CHECK(inf_now() - granted > 4500000000u);
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

static void *let_go_later(void *arg) {
    atomic_bool *late = arg;
    nanosleep(&(struct timespec){3, 0}, NULL);
    atomic_store(late, true);
    CHECK(sem_post(&fake.go) == 0);
    return NULL;
}

static void beside_an_export(void) {
    inst a = w_open(64), b = w_open(64);
    inf_link *c[2];
    pthread_t thread, alarm;
    atomic_bool late = false;
    uint64_t rng = 6;
    w_join(INF_PROVIDER_SHM, &a, 1, &b, 2);
    req *r = w_req(&a, 40, 1, &rng);
    w_lend(&a, r, &b, 1, 2, 4);
    step *s = calloc(1, sizeof *s);
    serving v = {.w = &a};
    w_lanes(INF_PROVIDER_SHM, &a, c, v.link);
    CHECK(sem_init(&fake.held, 0, 0) == 0 && sem_init(&fake.go, 0, 0) == 0);
    atomic_store(&fake.hold, true);
    CHECK(pthread_create(&thread, NULL, serve_one, &v) == 0 && sem_wait(&fake.held) == 0);
    CHECK(pthread_create(&alarm, NULL, let_go_later, &late) == 0);
    w_begin(&a, s, &r, 1, 1);
    CHECK(w_layer(&a, s, &r, 0, &rng) == 1 && w_error(s, r, 0, 0) < 1e-5);
    inf_dist_end(a.d);
    CHECK(!atomic_load(&late));
    CHECK(pthread_join(alarm, NULL) == 0 && pthread_join(thread, NULL) == 0);
    inf_link_close(c[0]);
    inf_link_close(c[1]);
    free(s);
    free(r);
    w_close(&a);
    w_close(&b);
}

int main(void) {
    use_fake();
    notes();
    ways();
    lying(7, 0, false);
    lying(8, 0, true);                 /* right behind the pool */
    lying(UINT64_MAX / 4096, 0, true); /* far behind it */
    lying(0, 64, false);
    beside_an_export();
    late();
    return 0;
}
