/* What a creditor does with messages that ask for more than a wave has computed: debtors are raw
 * links, and the test is the step thread, so that it says what is there in which layer. What must
 * not come is looked for after another debtor was answered, whose message came later. */
#include "wire_raw.h"

#include "dist/internal.h"

enum { DEBTORS = 2, PEER = 10, HOME = 40, WAVE_BLOCKS = 6, HANDLE = 3, SHARED = 8, WAVE = 1 };

static const int32_t blocks[WAVE_BLOCKS] = {9, 4, 33, 2, 17, 11}, shared[2] = {50, 51};
static const int32_t no_windows[W_LAYERS];

typedef struct {
    inst v;
    inf_link *query[DEBTORS], *move[DEBTORS];
    inf_step_head head;
    inf_step_seq seqs[2];
    inf_seq_out out[2];
    int32_t lists[2 * WAVE_BLOCKS];
    inf_step_buffers step;
    uint32_t asked;
} rig;

static inf_err err;

static uint64_t kept(const rig *r) {
    inf_device_stats s = {0};
    inf_dist_stats(r->v.d, &s);
    return s.kept_messages;
}

static void connect_debtor(rig *r, uint32_t provider, uint32_t i) {
    uint64_t bytes[2] = {inf_dist_query_slot_bytes(&r->v.config),
                         inf_dist_move_slot_bytes(&r->v.config)};
    inf_link *server[2], *client[2];
    for (int k = 0; k < 2; k++) {
        link_ends e = make_ends(provider, INF_QUERY_SLOTS, bytes[k]);
        open_ends(&e, &client[k], &server[k]);
    }
    r->query[i] = client[0];
    r->move[i] = client[1];
    CHECK(inf_dist_peer_serve(r->v.d, PEER + i, server[0], server[1], &err) == INF_OK);
}

static void open_spans(rig *r, uint32_t i) {
    CHECK(inf_dist_span_wave(r->v.d, PEER + i, HANDLE + i, 1, blocks, WAVE_BLOCKS, WAVE, &err) ==
          INF_OK);
    CHECK(inf_dist_span_share(r->v.d, PEER + i, SHARED + i, 1, shared, 2, &err) == INF_OK);
}

static rig *rig_open(uint32_t provider, uint64_t patience_ns) {
    rig *r = calloc(1, sizeof *r);
    uint64_t rng = 7;
    CHECK(r != NULL);
    r->v = w_open(64);
    inf_dist_close(r->v.d); /* again, without windows */
    inf_dist_config c = {r->v.backend, &r->v.config, r->v.kv, r->v.pool, no_windows, W_SCALE};
    CHECK(inf_dist_open(&c, &r->v.d, &err) == INF_OK);
    for (uint64_t i = 0; i < 64 * r->v.kv.block_bytes / sizeof(float); i++) {
        ((float *)(void *)r->v.pool)[i] = w_float(&rng);
    }
    CHECK(inf_dist_wave_open(r->v.d, WAVE, patience_ns, &err) == INF_OK);
    for (uint32_t i = 0; i < DEBTORS; i++) {
        connect_debtor(r, provider, i);
        open_spans(r, i);
    }
    r->step = (inf_step_buffers){
        .head = &r->head, .seqs = r->seqs, .blocks = r->lists, .seq_out = r->out};
    return r;
}

static void rig_close(rig *r) {
    w_close(&r->v);
    for (int i = 0; i < DEBTORS; i++) {
        inf_link_close(r->query[i]);
        inf_link_close(r->move[i]);
    }
    free(r);
}

/* ---- debtors ---- */

typedef struct {
    uint32_t handle, tokens;
} part;

/* A message of a group per part, always with the same queries. */
static void *ask_parts(rig *r, uint32_t i, uint32_t layer, uint32_t half, const part *parts,
                       uint32_t n) {
    static raw_msg m;
    uint64_t rng = 99;
    raw_query(&m, n, 2, 1, ++r->asked, layer, &rng);
    raw_head(&m)->half = half;
    for (uint32_t k = 0; k < n; k++) {
        raw_groups(&m)[k].q_pos0 = HOME;
        raw_entries(&m)[k] = (inf_wire_entry){parts[k].handle, 1, 0, parts[k].tokens};
    }
    void *slot = NULL;
    int status;
    while ((status = inf_link_prepare(r->query[i], &slot)) == INF_AGAIN) {
        (void)nanosleep(&(struct timespec){0, 100000}, NULL); /* an answer comes before a release */
    }
    CHECK(status == INF_OK);
    CHECK(raw_send(r->query[i], m.data, m.len) == INF_OK);
    return slot;
}

static void ask(rig *r, uint32_t i, uint32_t layer, uint32_t tokens) {
    (void)ask_parts(r, i, layer, 0, &(part){HANDLE + i, tokens}, 1);
}

/* Takes an answer, whose statuses are these; returns what names its numbers. */
static uint64_t answer_parts(rig *r, uint32_t i, uint32_t half, const int32_t *want, uint32_t n) {
    const uint8_t *msg = NULL;
    uint64_t len = 0, sum = 14695981039346656037u;
    inf_wire_head h;
    int32_t status[4];
    CHECK(raw_receive(r->query[i], &msg, &len) == INF_OK);
    memcpy(&h, msg, sizeof h);
    CHECK(h.n_groups == n && n <= 4 && h.half == half);
    memcpy(status, msg + sizeof h, n * sizeof *status);
    CHECK(memcmp(status, want, n * sizeof *status) == 0);
    for (uint64_t k = inf_wire_partial_head(n); k < len; k++) {
        sum = (sum ^ msg[k]) * 1099511628211u;
    }
    inf_link_release(r->query[i]);
    return sum;
}

static uint64_t answer(rig *r, uint32_t i, int32_t status) {
    return answer_parts(r, i, 0, &status, 1);
}

static uint64_t ask_now(rig *r, uint32_t i, uint32_t layer, uint32_t tokens, int32_t status) {
    ask(r, i, layer, tokens);
    return answer(r, i, status);
}

static void await_kept(const rig *r, uint64_t n) {
    while (kept(r) < n) {
        (void)nanosleep(&(struct timespec){0, 100000}, NULL);
    }
    CHECK(kept(r) == n);
}

/* The first debtor's message is kept, and another's, which comes later, is answered. */
static void still_kept(rig *r) {
    const void *msg;
    uint64_t len;
    const int32_t ok = INF_OK;
    for (int i = 0; i < 2; i++) {
        (void)ask_parts(r, 1, 1, 0, &(part){SHARED + 1, 2 * W_BLOCK}, 1);
        (void)answer_parts(r, 1, 0, &ok, 1);
    }
    CHECK(inf_link_poll(r->query[0], &msg, &len) == INF_AGAIN);
}

/* Who keeps messages sleeps meanwhile, but for a look now and then. */
static void sleeps(rig *r) {
    uint64_t rounds[2], begun = inf_now();
    for (int i = 0; i < 2; i++) {
        pthread_mutex_lock(&r->v.d->lock);
        rounds[i] = r->v.d->server.round;
        pthread_mutex_unlock(&r->v.d->lock);
        (void)nanosleep(&(struct timespec){0, 30000000}, NULL);
    }
    CHECK(rounds[1] - rounds[0] <= 20 + (inf_now() - begun) / 10000000);
}

/* ---- steps ---- */

static int try_begin(rig *r, uint32_t before, uint32_t n) {
    r->head.n_seqs = 1;
    r->seqs[0] = (inf_step_seq){.pos0 = HOME + before,
                                .local_pos0 = HOME,
                                .n_tokens = n,
                                .wave = WAVE,
                                .n_blocks = (before + n + W_BLOCK - 1) / W_BLOCK};
    memcpy(r->lists, blocks, sizeof blocks);
    r->out[0] = (inf_seq_out){INF_OK, -1};
    return inf_dist_waves_begin(r->v.d, &r->step, &err);
}

static void begin(rig *r, uint32_t before, uint32_t n) { CHECK(try_begin(r, before, n) == INF_OK); }

static void there(rig *r, int32_t layer) { inf_dist_waves_there(r->v.d, &r->step, layer); }

static void end(rig *r, int status) { inf_dist_waves_end(r->v.d, &r->step, status); }

static void whole_step(rig *r, uint32_t before, uint32_t n) {
    begin(r, before, n);
    for (int32_t l = 0; l < W_LAYERS; l++) {
        there(r, l);
    }
    end(r, INF_OK);
}

/* ---- what is kept, and answered ---- */

static void by_layers(uint32_t provider) {
    rig *r = rig_open(provider, W_LONG_NS);
    uint64_t sums[W_LAYERS];
    ask(r, 0, 0, 8);
    await_kept(r, 1);
    still_kept(r);
    begin(r, 0, 8);
    still_kept(r);
    there(r, 0);
    sums[0] = answer(r, 0, INF_OK);
    ask(r, 0, 1, 8);
    await_kept(r, 2);
    CHECK(inf_dist_wave_close(r->v.d, WAVE, &err) == INF_EINVAL);
    still_kept(r);
    there(r, 1);
    sums[1] = answer(r, 0, INF_OK);
    there(r, 2);
    sums[2] = ask_now(r, 0, 2, 8, INF_OK);
    /* More than the span has is never there; more than the step has may come. */
    (void)ask_now(r, 0, 2, (WAVE_BLOCKS + 1) * W_BLOCK, INF_ESTALE);
    CHECK(kept(r) == 2);
    ask(r, 0, 2, 12);
    await_kept(r, 3);
    end(r, INF_OK);
    still_kept(r);
    begin(r, 8, 5);
    there(r, 0);
    there(r, 1);
    still_kept(r);
    there(r, 2);
    uint64_t more = answer(r, 0, INF_OK);
    end(r, INF_OK);
    CHECK(inf_dist_wave_close(r->v.d, WAVE, &err) == INF_OK);
    for (uint32_t l = 0; l < W_LAYERS; l++) {
        CHECK(ask_now(r, 0, l, 8, INF_OK) == sums[l]);
    }
    CHECK(ask_now(r, 1, 2, 12, INF_OK) == more && more != sums[2]);
    (void)ask_now(r, 0, 0, 16, INF_ESTALE); /* 13 tokens fill 3 blocks */
    CHECK(kept(r) == 3);
    rig_close(r);
}

/* Two debtors wait for different layers and numbers of tokens. */
static void several(uint32_t provider) {
    rig *r = rig_open(provider, W_LONG_NS);
    ask(r, 0, 1, 16);
    await_kept(r, 1);
    ask(r, 1, 1, 8);
    await_kept(r, 2);
    begin(r, 0, 8);
    there(r, 0);
    there(r, 1);
    (void)answer(r, 1, INF_OK);
    there(r, 2);
    end(r, INF_OK);
    still_kept(r);
    whole_step(r, 8, 8);
    (void)answer(r, 0, INF_OK);
    rig_close(r);
}

/* One of each half waits, the second behind the first; a third is no debtor's. */
static void halves(uint32_t provider) {
    rig *r = rig_open(provider, W_LONG_NS);
    const part want = {HANDLE, 8};
    const int32_t ok = INF_OK;
    (void)ask_parts(r, 0, 1, 0, &want, 1);
    (void)ask_parts(r, 0, 1, 1, &want, 1);
    await_kept(r, 1);
    still_kept(r);
    sleeps(r);
    whole_step(r, 0, 8);
    (void)answer_parts(r, 0, 0, &ok, 1);
    (void)answer_parts(r, 0, 1, &ok, 1);
    for (uint32_t i = 0; i < 3; i++) {
        (void)ask_parts(r, 0, 1, i & 1, &(part){HANDLE, 16}, 1);
    }
    w_expect_status(&r->v, PEER, INF_EPROTO);
    raw_expect_death(r->query[0], INF_EPEER);
    rig_close(r);
}

/* A message waits as a whole, and what cannot wait any more is refused alone. */
static void groups(uint32_t provider) {
    rig *r = rig_open(provider, W_LONG_NS);
    const int32_t other[1] = {30}, ok[3] = {0}, late[3] = {INF_OK, INF_ESTALE, INF_OK};
    const part parts[3] = {{SHARED, 4}, {7, 4}, {HANDLE, 8}};
    CHECK(inf_dist_wave_open(r->v.d, 2, 30000000, &err) == INF_OK);
    CHECK(inf_dist_span_wave(r->v.d, PEER, 7, 1, other, 1, 2, &err) == INF_OK);
    (void)ask_parts(r, 0, 2, 0, parts, 3);
    await_kept(r, 1);
    whole_step(r, 0, 8);
    (void)answer_parts(r, 0, 0, late, 3);
    r->lists[0] = other[0]; /* of the other wave, whose step comes late */
    r->seqs[0] = (inf_step_seq){.n_tokens = 4, .wave = 2, .n_blocks = 1};
    CHECK(inf_dist_waves_begin(r->v.d, &r->step, &err) == INF_OK);
    for (int32_t l = 0; l < W_LAYERS; l++) {
        there(r, l);
    }
    end(r, INF_OK);
    (void)ask_parts(r, 0, 2, 0, parts, 3);
    (void)answer_parts(r, 0, 0, ok, 3);
    rig_close(r);
}

/* ---- what is refused ---- */

static void impatient(uint32_t provider) {
    rig *r = rig_open(provider, 30000000);
    (void)ask_now(r, 0, 0, 8, INF_ESTALE); /* the step never begins */
    CHECK(kept(r) == 1);
    still_kept(r);
    whole_step(r, 0, 8);
    (void)ask_now(r, 0, 0, 8, INF_OK);
    CHECK(inf_dist_peer_status(r->v.d, PEER, &err) == INF_OK);
    rig_close(r);
}

enum { LOSES_A_PEER, FAILS_AT_ITS_END, IS_NO_MORE };

/* A second step fails: what the first one has filled is all there ever is. */
/* Both halves of a step are refused within one patience, since their debtor waits for no more: the
 * second one's answer is there before that of a message which came later. */
static void impatient_halves(uint32_t provider) {
    const void *msg;
    uint64_t len;
    const int32_t stale = INF_ESTALE;
    rig *r = rig_open(provider, 1000000000);
    for (uint32_t half = 0; half < INF_HALVES; half++) {
        (void)ask_parts(r, 0, 0, half, &(part){HANDLE, W_BLOCK}, 1);
    }
    await_kept(r, 1);
    (void)nanosleep(&(struct timespec){0, 400000000}, NULL);
    ask(r, 1, 0, W_BLOCK);
    (void)answer(r, 1, INF_ESTALE);
    (void)answer_parts(r, 0, 0, &stale, 1);
    CHECK(inf_link_poll(r->query[0], &msg, &len) == INF_OK);
    inf_link_release(r->query[0]);
    rig_close(r);
}

static void fails(uint32_t provider, int how) {
    rig *r = rig_open(provider, W_LONG_NS);
    whole_step(r, 0, 8);
    begin(r, 8, 8);
    there(r, 0);
    (void)ask_now(r, 0, 0, 16, INF_OK);
    ask(r, 0, 1, how == LOSES_A_PEER ? 16 : 20);
    await_kept(r, 1);
    if (how == LOSES_A_PEER) {
        r->out[0] = (inf_seq_out){INF_EPEER, 4};
    }
    there(r, 1);
    if (how == LOSES_A_PEER) {
        (void)answer(r, 0, INF_ESTALE);
    }
    there(r, 2);
    if (how == FAILS_AT_ITS_END) {
        r->out[0].status = INF_ENOTFINITE;
    }
    if (how != LOSES_A_PEER) {
        still_kept(r);
    }
    end(r, how == IS_NO_MORE ? INF_EIO : INF_OK);
    if (how != LOSES_A_PEER) {
        (void)answer(r, 0, INF_ESTALE);
    }
    for (uint32_t l = 0; l < W_LAYERS; l++) {
        (void)ask_now(r, 1, l, 12, INF_ESTALE);
        (void)ask_now(r, 1, l, 8, INF_OK);
    }
    /* It is computed once more, which makes nothing readable; nor is what is written anew. */
    CHECK(try_begin(r, 4, 4) == INF_EINVAL);
    whole_step(r, 8, 8);
    (void)ask_now(r, 0, 1, 12, INF_ESTALE);
    CHECK(inf_dist_wave_close(r->v.d, WAVE, &err) == INF_OK);
    (void)ask_now(r, 0, 1, 12, INF_ESTALE);
    (void)ask_now(r, 0, 1, 8, INF_OK);
    CHECK(kept(r) == 1);
    rig_close(r);
}

enum { WAVE_ENDS, SPAN_ENDS, PEER_ENDS, DEVICE_ENDS, DEBTOR_ENDS, MESSAGE_CHANGES };

/* Something ends while a message is kept, and another is behind it. */
static void ends(uint32_t provider, int how) {
    rig *r = rig_open(provider, W_LONG_NS);
    const int32_t stale = INF_ESTALE;
    inf_wire_head *slot = ask_parts(r, 0, 1, 0, &(part){HANDLE, 8}, 1);
    (void)ask_parts(r, 0, 1, 1, &(part){HANDLE, 4}, 1);
    await_kept(r, 1);
    still_kept(r);
    if (how == WAVE_ENDS || how == SPAN_ENDS) {
        int status = how == WAVE_ENDS ? inf_dist_wave_close(r->v.d, WAVE, &err)
                                      : inf_dist_span_close(r->v.d, HANDLE, 1, &err);
        CHECK(status == INF_OK);
        (void)answer_parts(r, 0, 0, &stale, 1);
        (void)answer_parts(r, 0, 1, &stale, 1);
        CHECK(kept(r) == 1 && inf_dist_peer_status(r->v.d, PEER, &err) == INF_OK);
    } else if (how == PEER_ENDS) {
        CHECK(inf_dist_peer_detach(r->v.d, PEER, &err) == INF_OK);
        raw_expect_death(r->query[0], INF_EPEER);
        inf_link_close(r->query[0]);
        inf_link_close(r->move[0]);
        connect_debtor(r, provider, 0); /* anew, and nobody waits for it */
        (void)ask_now(r, 0, 1, (WAVE_BLOCKS + 1) * W_BLOCK, INF_ESTALE);
        whole_step(r, 0, 8);
        (void)ask_now(r, 0, 1, 8, INF_OK);
    } else if (how == DEBTOR_ENDS) { /* nobody waits for it longer than it lives */
        inf_link_close(r->query[0]);
        r->query[0] = NULL;
        w_expect_status(&r->v, PEER, INF_EPEER);
        whole_step(r, 0, 8);
        (void)ask_now(r, 1, 1, 8, INF_OK);
    } else if (how == MESSAGE_CHANGES) { /* in shared memory, after it was checked */
        slot->n_entries = 1u << 30;
        whole_step(r, 0, 8);
        w_expect_status(&r->v, PEER, INF_EPROTO);
    }
    rig_close(r);
}

int main(void) {
    for (uint32_t provider = INF_PROVIDER_SHM; provider <= INF_PROVIDER_TCP; provider++) {
        by_layers(provider);
        several(provider);
        halves(provider);
        groups(provider);
        impatient(provider);
        impatient_halves(provider);
        for (int how = LOSES_A_PEER; how <= IS_NO_MORE; how++) {
            fails(provider, how);
        }
        for (int how = WAVE_ENDS; how <= DEBTOR_ENDS; how++) {
            ends(provider, how);
        }
    }
    ends(INF_PROVIDER_SHM, MESSAGE_CHANGES);
    puts("waves kept: ok");
    return 0;
}
