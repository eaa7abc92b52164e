/* Moves by copies from pool to pool, at the sender. Who cannot open a pool falls back to messages,
 * and says why; a peer that grants what its pool has not is ended before a byte is copied; who is
 * late, or fails to copy, ends a move, and no peer. */
#include "direct_fake.h"

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
    atomic_store(&fake.refuse_export, true);
    CHECK(lend_and_step(INF_PROVIDER_SHM, &rails) == 0 && rails.puts == 0);
    atomic_store(&fake.refuse_export, false);
}

/* The server's ends of a's lanes, played by the test, which tells of a pool of 8 blocks. */
typedef struct {
    inst a;
    inf_link *raw[2];
    uint8_t *pool;
    uint64_t block;
    inf_wire_head h; /* of what was heard last on the move lane */
    inf_wire_move m;
} other;

static other *open_other(uint64_t block_bytes_off) {
    other *o = calloc(1, sizeof *o);
    inf_link *c[2];
    inf_err err;
    CHECK(o != NULL);
    o->a = w_open(64);
    o->block = o->a.kv.block_bytes;
    o->pool = calloc(8, o->block);
    struct {
        uint32_t magic, bytes;
        uint64_t block_bytes, num_blocks;
        inf_pool_key key;
    } note = {0x504e4931,
              sizeof note,
              o->block + block_bytes_off,
              8,
              {.process = 77, .address = (uint64_t)(uintptr_t)o->pool}};
    w_lanes(INF_PROVIDER_SHM, &o->a, c, o->raw);
    CHECK(inf_link_tell(o->raw[1], &note, sizeof note) == INF_OK);
    CHECK(inf_link_tell(o->raw[1], &note, sizeof note) == INF_EFULL);
    CHECK(inf_dist_peer_attach(o->a.d, 1, c[0], c[1], &err) == INF_OK);
    memset(w_block(&o->a, 3), 0x5a, o->block);
    return o;
}

static void close_other(other *o) {
    inf_link_close(o->raw[0]);
    inf_link_close(o->raw[1]);
    w_close(&o->a);
    CHECK(atomic_load(&fake.open) == 0);
    free(o->pool);
    free(o);
}

static void post_block(other *o, uint64_t ticket) {
    int32_t mine = 3;
    inf_err err;
    CHECK(inf_dist_move_post(o->a.d, 1, 5, 6, 0, &mine, 1, ticket, &err) == INF_OK);
}

/* The next message of the move lane; the length. */
static uint64_t hear(other *o, uint32_t kind) {
    const uint8_t *msg = NULL;
    uint64_t len = 0;
    CHECK(raw_receive(o->raw[1], &msg, &len) == INF_OK);
    memcpy(&o->h, msg, sizeof o->h);
    memcpy(&o->m, msg + sizeof o->h, sizeof o->m);
    CHECK(o->h.kind == kind);
    inf_link_release(o->raw[1]);
    return len;
}

/* Answers what was heard last: with a grant of block `at`, or an acknowledgement. */
static void say(other *o, uint32_t kind, uint64_t at, int32_t status, uint32_t landed) {
    static _Alignas(64) uint8_t answer[4096];
    inf_grant g = {.address = at * o->block, .bytes = o->block};
    inf_wire_head h = o->h;
    inf_wire_move m = o->m;
    h.kind = kind;
    h.n_entries = kind == INF_WIRE_GRANT;
    h.bytes = inf_wire_grant_bytes(h.n_entries);
    m.status = status;
    m.landed = landed;
    memset(answer, 0, sizeof answer);
    memcpy(answer, &h, sizeof h);
    memcpy(answer + sizeof h, &m, sizeof m);
    if (kind == INF_WIRE_GRANT) {
        memcpy(answer + inf_wire_move_head(), &g, sizeof g);
    }
    CHECK(raw_send(o->raw[1], answer, h.bytes) == INF_OK);
}

/* Grants block `at`. dies: that must end the peer, and nothing be copied. */
static void lying(uint64_t at, bool dies) {
    other *o = open_other(0);
    uint32_t copies = atomic_load(&fake.copies);
    post_block(o, 9);
    hear(o, INF_WIRE_ASK);
    say(o, INF_WIRE_GRANT, at, INF_OK, 0);
    if (dies) {
        raw_expect_death(o->raw[1], INF_EPEER);
        w_expect_status(&o->a, 1, INF_EPROTO);
    } else {
        hear(o, INF_WIRE_LANDED);
        /* The count orders the copy before the look at it; that the ring, mapped twice, does so too
         * is more than the thread sanitizer can see. */
        CHECK(atomic_load(&fake.copies) == copies + 1);
        CHECK(memcmp(o->pool + at * o->block, w_block(&o->a, 3), o->block) == 0);
    }
    CHECK(atomic_load(&fake.copies) - copies == (dies ? 0 : 1));
    close_other(o);
}

/* A pool that is not what the note says is not opened, and the blocks come themselves. */
static void misfits(void) {
    inf_peer_rails rails;
    inf_err err;
    for (int i = 0; i < 3; i++) { /* another shape; a block less than it says; what it says */
        other *o = open_other(i == 0 ? 64 : 0);
        atomic_store(&fake.bytes, (i == 1 ? 7 : 8) * o->block);
        post_block(o, 9);
        if (i == 2) {
            hear(o, INF_WIRE_ASK);
        } else {
            CHECK(hear(o, INF_WIRE_MOVE) == inf_wire_move_head() + o->block);
            CHECK(inf_dist_peer_rails(o->a.d, 1, &rails, &err) == INF_OK && rails.puts == 0);
            CHECK(strstr(rails.no_puts, i == 0 ? "not as ours" : "smaller than it says") != NULL);
            CHECK(atomic_load(&fake.open) == 0);
        }
        close_other(o);
    }
    atomic_store(&fake.bytes, UINT64_MAX);
}

/* A step of a over the test's end of the query lane. */
static void query_goes_on(other *o, uint64_t id) {
    static raw_msg m;
    const uint8_t *msg = NULL;
    uint64_t len = 0, rng = 5;
    step *s = calloc(1, sizeof *s);
    req *r = w_req(&o->a, 40, 1, &rng);
    r->local_pos0 = 4 * W_BLOCK;
    r->n_spans = 1;
    r->spans[0] =
        (inf_step_span){.peer = 1, .handle = 5, .generation = 6, .n_tokens = r->local_pos0};
    w_begin(&o->a, s, &r, 1, id);
    CHECK(w_post(&o->a, s, 0, &rng) == 1 && raw_receive(o->raw[0], &msg, &len) == INF_OK);
    raw_partial(&m, (const inf_wire_head *)(const void *)msg, &rng);
    inf_link_release(o->raw[0]);
    CHECK(raw_send(o->raw[0], m.data, m.len) == INF_OK);
    inf_dist_collect(o->a.d, &s->b, w_step_lane(s));
    CHECK(s->seq_out[0].status == INF_OK);
    inf_dist_end(o->a.d);
    free(s);
    free(r);
}

/* A grant that comes when the sender may not make use of it any more: nothing is copied, the
 * receiver is told, and that move ends; queries and other moves go on over the same lanes. */
static void late_to_copy(void) {
    other *o = open_other(0);
    inf_err err;
    uint32_t copies = atomic_load(&fake.copies);
    post_block(o, 9);
    hear(o, INF_WIRE_ASK);
    nanosleep(&(struct timespec){2, 300000000}, NULL);
    say(o, INF_WIRE_GRANT, 2, INF_OK, 0);
    hear(o, INF_WIRE_LANDED);
    CHECK(o->m.status == INF_ESTALE && atomic_load(&fake.copies) == copies);
    say(o, INF_WIRE_ACK, 0, INF_ESTALE, 0);
    inf_move_done done = w_move_wait(&o->a);
    CHECK(done.ticket == 9 && done.status == INF_ETIMEOUT);
    CHECK(inf_dist_peer_status(o->a.d, 1, &err) == INF_OK);
    query_goes_on(o, 1);
    post_block(o, 10);
    hear(o, INF_WIRE_ASK);
    say(o, INF_WIRE_GRANT, 2, INF_OK, 0);
    hear(o, INF_WIRE_LANDED);
    CHECK(o->m.status == INF_OK && atomic_load(&fake.copies) == copies + 1);
    say(o, INF_WIRE_ACK, 0, INF_OK, 1);
    done = w_move_wait(&o->a);
    CHECK(done.ticket == 10 && done.status == INF_OK);
    close_other(o);
}

/* Copies fail, on every lane: the grants end, the blocks come themselves over the same lane, and so
 * does what was asked for meanwhile. */
static void cannot_copy(void) {
    other *o = open_other(0);
    inf_peer_rails rails;
    inf_err err;
    atomic_store(&fake.break_copy, true);
    post_block(o, 9);
    hear(o, INF_WIRE_ASK);
    inf_wire_head h = o->h;
    inf_wire_move m = o->m;
    post_block(o, 10);
    hear(o, INF_WIRE_ASK);
    inf_wire_head h2 = o->h;
    inf_wire_move m2 = o->m;
    o->h = h, o->m = m;
    say(o, INF_WIRE_GRANT, 2, INF_OK, 0);
    hear(o, INF_WIRE_LANDED);
    CHECK(o->m.ticket == 9 && o->m.status == INF_ESTALE && atomic_load(&fake.open) == 0);
    o->h = h2, o->m = m2;
    say(o, INF_WIRE_GRANT, 4, INF_OK, 0);
    hear(o, INF_WIRE_LANDED);
    CHECK(o->m.ticket == 10 && o->m.status == INF_ESTALE);
    inf_wire_head landed2 = o->h;
    inf_wire_move landed2_move = o->m;
    o->h.kind = INF_WIRE_LANDED, o->m = m;
    say(o, INF_WIRE_ACK, 0, INF_ESTALE, 0);
    o->h = landed2, o->m = landed2_move;
    say(o, INF_WIRE_ACK, 0, INF_ESTALE, 0);
    for (uint64_t i = 0; i < 2; i++) {
        CHECK(hear(o, INF_WIRE_MOVE) == inf_wire_move_head() + o->block && o->m.ticket == 9 + i);
        say(o, INF_WIRE_ACK, 0, INF_OK, 1);
        CHECK(w_move_wait(&o->a).status == INF_OK);
    }
    atomic_store(&fake.break_copy, false);
    CHECK(inf_dist_peer_rails(o->a.d, 1, &rails, &err) == INF_OK && rails.puts == 0);
    CHECK(strstr(rails.no_puts, "copies into the peer's pool failed") != NULL);
    CHECK(inf_dist_peer_status(o->a.d, 1, &err) == INF_OK);
    query_goes_on(o, 1);
    close_other(o);
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

int main(void) {
    use_fake();
    notes();
    ways();
    lying(7, false);
    lying(8, true);                 /* right behind the pool */
    lying(UINT64_MAX / 4096, true); /* far behind it */
    misfits();
    late_to_copy();
    cannot_copy();
    return 0;
}
