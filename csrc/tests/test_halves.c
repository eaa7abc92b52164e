/* Steps in halves (test_halves_cut has the cut): that what comes out is what the plain forward pass
 * says, whatever lies with whom; that one half's partials travel while the other is computed; and
 * what a creditor does to both when it is late, refuses or dies. With INFINITE_TEST_GPU and
 * INFINITE_TEST_TP of the backends that these name. */
#define _GNU_SOURCE
#include <time.h>

#include "dist/wire.h"
#include "tests/farther.h"
#include "tests/tiny_model.h"

#include "tests/link_ends.h"

enum { BLOCK = 4, TEXT = 45, DONE = 20, REQUESTS = 3, HOSTS = 2 };

static uint32_t below(uint64_t *rng, uint32_t n) {
    *rng = *rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*rng >> 33) % n);
}

/* ---- a home, its requests, and who has a part of them ---- */

typedef struct request {
    int32_t tokens[TEXT], blocks[12];
    uint32_t n_spans, lent; /* tokens */
    inf_step_span spans[HOSTS];
    double want[TEXT][TINY_VOCAB];
} request;

static void request_new(request *r, const tiny_model *m, uint32_t slot) {
    uint64_t rng = slot + 5;
    *r = (request){.lent = 0};
    for (int i = 0; i < TEXT; i++) {
        r->tokens[i] = (int32_t)below(&rng, TINY_VOCAB);
    }
    for (int i = 0; i < 12; i++) {
        r->blocks[i] = (int32_t)((uint32_t)(i * 5) % 12 * 4 + slot);
    }
    tiny_reference(m, r->tokens, TEXT, r->want);
}

/* One step of n[i] rows of each request behind its first done[i] tokens; every row is scored. */
static void submit(inf_device *d, const inf_step_buffers *b, const request *all,
                   const uint32_t *done, const uint32_t *n, uint64_t timeout_ns, uint32_t flags) {
    inf_err err = {0};
    *b->head = (inf_step_head){
        .step_id = done[0] + 1, .n_seqs = REQUESTS, .peer_timeout_ns = timeout_ns, .flags = flags};
    for (uint32_t i = 0; i < REQUESTS; i++) {
        const request *r = &all[i];
        uint32_t blocks = (done[i] + n[i] - r->lent + BLOCK - 1) / BLOCK;
        b->seqs[i] = (inf_step_seq){.slot = i,
                                    .token_off = b->head->n_tokens,
                                    .n_tokens = n[i],
                                    .pos0 = done[i],
                                    .local_pos0 = r->lent,
                                    .block_off = b->head->n_blocks,
                                    .n_blocks = blocks,
                                    .span_off = b->head->n_spans,
                                    .n_spans = r->n_spans};
        memcpy(b->tokens + b->head->n_tokens, r->tokens + done[i], n[i] * sizeof(int32_t));
        memcpy(b->blocks + b->head->n_blocks, r->blocks + r->lent / BLOCK,
               blocks * sizeof(int32_t));
        memcpy(b->spans + b->head->n_spans, r->spans, r->n_spans * sizeof *r->spans);
        for (uint32_t t = 0; t < n[i]; t++) {
            int32_t next = done[i] + t + 1 < TEXT ? r->tokens[done[i] + t + 1] : 0;
            b->rows[b->head->n_rows++] =
                (inf_step_row){b->head->n_tokens + t, i, next, INF_MAX_TOP, 0};
        }
        b->head->n_tokens += n[i];
        b->head->n_blocks += blocks;
        b->head->n_spans += r->n_spans;
    }
    CHECK(inf_device_submit(d, &err) == INF_OK, "%s", err.message);
}

/* How far the rows of those requests that have not failed are from the reference. */
static double finish(inf_device *d, const inf_step_buffers *b, const request *all,
                     const uint32_t *done, const uint32_t *n) {
    inf_err err = {0};
    double worst = 0;
    CHECK(inf_device_wait(d, -1, &err) == INF_OK, "%s", err.message);
    for (uint32_t i = 0, row = 0; i < REQUESTS; i++) {
        for (uint32_t t = 0; t < n[i]; t++, row++) {
            const inf_row_out *o = &b->row_out[row];
            for (uint32_t k = 0; b->seq_out[i].status == INF_OK && k < INF_MAX_TOP; k++) {
                worst = farther(worst, (double)o->top_logprobs[k],
                                all[i].want[done[i] + t][o->top_ids[k]]);
            }
        }
    }
    return worst;
}

static const uint64_t LONG_NS = UINT64_C(60000000000);
static const uint32_t done[REQUESTS] = {DONE, DONE, DONE}, first[REQUESTS] = {DONE, DONE, DONE};
static const uint32_t none[REQUESTS] = {0, 0, 0};
/* 27 rows: the second request goes over the cut, behind the sixteenth. */
static const uint32_t next_rows[REQUESTS] = {13, 9, 5};

static double tolerance(const tiny_model *m) {
    return m->config.dtype == INF_DTYPE_F32 ? 1e-4 : 0.2;
}

static inf_device *home_open(const tiny_model *m, const char *half_rows, request *all,
                             inf_step_buffers *b) {
    inf_err err = {0};
    CHECK(setenv("INFINITE_HALF_ROWS", half_rows, 1) == 0, "setenv");
    inf_device *d = tiny_open(m);
    CHECK(inf_device_buffers(d, b, &err) == INF_OK, "%s", err.message);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        request_new(&all[i], m, i);
        tiny_slot(d, i);
    }
    submit(d, b, all, none, first, LONG_NS, 0);
    double off = finish(d, b, all, none, first);
    CHECK(off < tolerance(m), "alone it is off by %g", off);
    return d;
}

/* The client and the server ends of a query and a move link. */
static void open_links(uint32_t via, const tiny_model *m, uint32_t slots, inf_link **client,
                       inf_link **server) {
    uint64_t bytes[2] = {inf_device_query_slot_bytes(&m->config),
                         inf_device_move_slot_bytes(&m->config)};
    for (int i = 0; i < 2; i++) {
        link_ends e = make_ends(via, slots, bytes[i]);
        open_ends(&e, &client[i], &server[i]);
    }
}

/* The home knows its host as peer 1 + index; the host, the home as peer 2. */
static void join(uint32_t via, const tiny_model *m, inf_device *home, inf_device *host,
                 uint32_t peer) {
    inf_link *client[2], *server[2];
    inf_err err = {0};
    open_links(via, m, INF_QUERY_SLOTS, client, server);
    CHECK(inf_device_peer_serve(host, 2, server[0], server[1], &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_peer_attach(home, peer, client[0], client[1], &err) == INF_OK, "%s",
          err.message);
}

/* Moves the request's next n blocks to a host. */
static void lend(inf_device *home, inf_device *host, uint32_t peer, request *r, uint32_t handle,
                 int32_t n) {
    int32_t theirs[12];
    inf_err err = {0};
    inf_move_done moved;
    for (int32_t i = 0; i < n; i++) {
        theirs[i] = (int32_t)handle * 10 + 9 - i;
    }
    CHECK(inf_device_span_set(host, 2, handle, 3, theirs, n, &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_move_post(home, peer, handle, 3, 0, r->blocks + r->lent / BLOCK, n, 77,
                               &err) == INF_OK,
          "%s", err.message);
    CHECK(inf_device_move_wait(home, INT64_C(60000000000), &moved, &err) == INF_OK, "%s",
          err.message);
    CHECK(moved.status == INF_OK, "%d", moved.status);
    r->spans[r->n_spans++] = (inf_step_span){.peer = peer,
                                             .handle = handle,
                                             .generation = 3,
                                             .pos0 = r->lent,
                                             .n_tokens = (uint32_t)n * BLOCK};
    r->lent += (uint32_t)n * BLOCK;
}

static uint64_t messages(inf_device *d) {
    inf_device_stats s;
    CHECK(inf_device_stats_read(d, &s) == INF_OK, "stats");
    return s.query_messages;
}

/* Two requests whose KV lies with two hosts and at home, one of them with both, and one that is all
 * at home. The second host then dies. */
static uint64_t spread(uint32_t via, uint32_t flags, int32_t dtype, const char *half_rows) {
    tiny_model m = tiny_new(flags, dtype);
    request all[REQUESTS];
    inf_step_buffers b;
    inf_device *home = home_open(&m, half_rows, all, &b), *host[HOSTS];
    for (uint32_t i = 0; i < HOSTS; i++) {
        host[i] = tiny_open(&m);
        join(via, &m, home, host[i], 1 + i);
    }
    lend(home, host[0], 1, &all[0], 1, 2);
    lend(home, host[1], 2, &all[0], 2, 2);
    lend(home, host[0], 1, &all[1], 3, 3);
    submit(home, &b, all, done, next_rows, LONG_NS, INF_STEP_EMPTY_REMOTE);
    double empty = finish(home, &b, all, done, next_rows);
    uint64_t before = messages(home);
    submit(home, &b, all, done, next_rows, LONG_NS, 0);
    double off = finish(home, &b, all, done, next_rows);
    uint64_t asked = messages(home) - before;
    for (int i = 0; i < REQUESTS; i++) {
        CHECK(b.seq_out[i].status == INF_OK, "%d", b.seq_out[i].status);
    }
    CHECK(off < tolerance(&m), "half_rows %s: off by %g", half_rows, off);
    CHECK(empty > 2 * tolerance(&m), "without the partials it is off by %g only", empty);
    inf_device_close(host[1]);
    submit(home, &b, all, done, next_rows, LONG_NS, 0);
    off = finish(home, &b, all, done, next_rows);
    CHECK(off < tolerance(&m), "beside a dead host: off by %g", off);
    CHECK(b.seq_out[0].status == INF_EPEER && b.seq_out[0].peer == 2 &&
              b.seq_out[1].status == INF_OK && b.seq_out[2].status == INF_OK,
          "%d %d %d", b.seq_out[0].status, b.seq_out[1].status, b.seq_out[2].status);
    inf_device_close(home);
    inf_device_close(host[0]);
    tiny_free(&m);
    return asked;
}

/* ---- a host played by the test ---- */

typedef struct raw_host {
    inf_link *query;
    inf_wire_head got[2 * TINY_LAYERS]; /* in order */
    int n;
    uint8_t answer[1 << 16];
    inf_link *move;
    /* Its home, whose requests have KV with this host alone. */
    tiny_model m;
    request all[REQUESTS];
    inf_step_buffers b;
    inf_device *home;
} raw_host;

static void nap(int64_t ms) { (void)nanosleep(&(struct timespec){0, ms * 1000000}, NULL); }

static void take(raw_host *h) {
    const void *msg;
    uint64_t len;
    int status;
    for (int i = 0; (status = inf_link_poll(h->query, &msg, &len)) == INF_AGAIN; i++) {
        CHECK(i < 30000, "no message but %d have come", h->n);
        nap(1);
    }
    CHECK(status == INF_OK && h->n < 2 * TINY_LAYERS, "%d", status);
    memcpy(&h->got[h->n++], msg, sizeof *h->got);
}

/* Partials over nothing, to the index-th message. */
static void answer(raw_host *h, int index, const inf_device_config *c) {
    inf_wire_head head = h->got[index];
    uint64_t begin = inf_wire_partial_head(head.n_groups), row = (uint64_t)(c->heads * c->head_dim);
    uint64_t lse = begin + head.n_rows * row * sizeof(float);
    head.kind = INF_WIRE_PARTIAL;
    head.bytes = lse + head.n_rows * (uint64_t)c->heads * sizeof(float);
    CHECK(head.bytes <= sizeof h->answer, "%llu bytes", (unsigned long long)head.bytes);
    memset(h->answer, 0, head.bytes);
    memcpy(h->answer, &head, sizeof head);
    for (uint64_t i = lse; i < head.bytes; i += sizeof(float)) {
        float empty = -INFINITY;
        memcpy(h->answer + i, &empty, sizeof empty);
    }
    void *slot;
    int status;
    for (int i = 0; (status = inf_link_prepare(h->query, &slot)) == INF_AGAIN && i < 30000; i++) {
        nap(1);
    }
    CHECK(status == INF_OK, "%d", status);
    memcpy(slot, h->answer, head.bytes);
    CHECK(inf_link_post(h->query, head.bytes) == INF_OK, "post");
}

static void raw_open(raw_host *h, uint32_t via) {
    inf_link *client[2], *server[2];
    inf_err err = {0};
    *h = (raw_host){.m = tiny_new(0, INF_DTYPE_F32)};
    h->home = home_open(&h->m, "4", h->all, &h->b);
    open_links(via, &h->m, INF_QUERY_SLOTS, client, server);
    CHECK(inf_device_peer_attach(h->home, 1, client[0], client[1], &err) == INF_OK, "%s",
          err.message);
    for (int i = 0; i < 2; i++) { /* the window of the second layer sees it */
        h->all[i].n_spans = 1;
        h->all[i].spans[0] =
            (inf_step_span){.peer = 1, .handle = 1, .generation = 1, .n_tokens = DONE};
        h->all[i].lent = DONE;
    }
    h->query = server[0];
    h->move = server[1];
}

static void raw_leave(raw_host *h) {
    inf_link_close(h->query);
    inf_link_close(h->move);
    h->query = h->move = NULL;
}

static void raw_close(raw_host *h) {
    raw_leave(h);
    inf_device_close(h->home);
    tiny_free(&h->m);
}

static void expect(const raw_host *h, int index, uint32_t layer, uint32_t half) {
    CHECK(h->got[index].layer == layer && h->got[index].half == half,
          "message %d is of layer %u, half %u", index, h->got[index].layer, h->got[index].half);
}

/* The host answers the first half's layer, and says nothing to the second's until the first half
 * asks for its next layer: a home that computed one after the other would wait for ever. Before,
 * it is slow to release what it has answered, with which its ring is full. */
static void overlaps(uint32_t via) {
    raw_host h;
    raw_open(&h, via);
    submit(h.home, &h.b, h.all, done, next_rows, LONG_NS, 0);
    take(&h);
    answer(&h, 0, &h.m.config);
    nap(50);
    inf_link_release(h.query);
    take(&h);
    inf_link_release(h.query);
    take(&h); /* .. while the one before is not answered */
    inf_link_release(h.query);
    answer(&h, 1, &h.m.config);
    take(&h);
    inf_link_release(h.query);
    answer(&h, 2, &h.m.config);
    answer(&h, 3, &h.m.config);
    (void)finish(h.home, &h.b, h.all, done, next_rows);
    for (int i = 0; i < REQUESTS; i++) {
        CHECK(h.b.seq_out[i].status == INF_OK, "%d", h.b.seq_out[i].status);
    }
    expect(&h, 0, 0, 0);
    expect(&h, 1, 0, 1);
    expect(&h, 2, 1, 0);
    expect(&h, 3, 1, 1);
    CHECK(h.got[0].n_rows == 16 && h.got[1].n_rows == 6, "%u, %u", h.got[0].n_rows,
          h.got[1].n_rows);
    raw_close(&h);
}

enum { SILENT, SWAPS_ANSWERS, DIES, KEEPS_SLOTS };

/* What a host does wrong to one half is the end of both halves' requests there, and of no other. */
static void fails(uint32_t via, int how, int status) {
    raw_host h;
    raw_open(&h, via);
    submit(h.home, &h.b, h.all, done, next_rows, how == SILENT ? UINT64_C(300000000) : LONG_NS, 0);
    for (int i = 0; i < 2; i++) {
        take(&h);
        if (how != KEEPS_SLOTS) {
            inf_link_release(h.query);
        }
    }
    if (how == SWAPS_ANSWERS) { /* the other half's is not what is asked for first */
        answer(&h, 1, &h.m.config);
    } else if (how == DIES) { /* dies with one half's answered */
        answer(&h, 0, &h.m.config);
        raw_leave(&h);
    } else if (how == KEEPS_SLOTS) { /* answers all, and gives no slot back */
        answer(&h, 0, &h.m.config);
        answer(&h, 1, &h.m.config);
    }
    double off = finish(h.home, &h.b, h.all, done, next_rows);
    for (int i = 0; i < 2; i++) {
        CHECK(h.b.seq_out[i].status == status && h.b.seq_out[i].peer == 1, "way %d: %d", how,
              h.b.seq_out[i].status);
    }
    CHECK(h.b.seq_out[2].status == INF_OK && off < 1e-4, "way %d: %d, off by %g", how,
          h.b.seq_out[2].status, off);
    raw_close(&h);
}

/* A ring that both halves' messages and a late release do not fit into. */
static void refuses_small_rings(void) {
    tiny_model m = tiny_new(0, INF_DTYPE_F32);
    inf_device *d = tiny_open(&m);
    inf_link *client[2], *server[2];
    inf_err err = {0};
    open_links(INF_PROVIDER_SHM, &m, INF_QUERY_SLOTS - 1, client, server);
    CHECK(inf_device_peer_attach(d, 1, client[0], client[1], &err) == INF_EINVAL, "%s",
          err.message);
    CHECK(strstr(err.message, "a query link has 3 slots or more") != NULL, "%s", err.message);
    for (int i = 0; i < 2; i++) {
        inf_link_close(server[i]);
    }
    inf_device_close(d);
    tiny_free(&m);
}

int main(void) {
    refuses_small_rings();
    for (uint32_t via = INF_PROVIDER_SHM; via <= INF_PROVIDER_TCP; via++) {
        for (int32_t f = 0; f < 2; f++) {
            int32_t dtype = f == 0 ? INF_DTYPE_F32 : INF_DTYPE_BF16;
            const uint32_t flags = INF_MODEL_QK_NORM;
            uint64_t whole = spread(via, flags, dtype, "0");
            uint64_t halved = spread(via, flags, dtype, "13");
            uint64_t beyond = spread(via, flags, dtype, "14"); /* rows of a half, of 27 in all */
            CHECK(whole == 3 && beyond == whole && halved > whole, "%llu, %llu and %llu messages",
                  (unsigned long long)whole, (unsigned long long)halved,
                  (unsigned long long)beyond);
        }
        (void)spread(via, TINY_EXPERTS | TINY_SHARED, INF_DTYPE_F32, "13");
        overlaps(via);
        fails(via, SILENT, INF_ETIMEOUT);
        fails(via, SWAPS_ANSWERS, INF_EPROTO);
        fails(via, DIES, INF_EPEER);
        if (via == INF_PROVIDER_SHM) { /* over tcp room is the kernel's */
            fails(via, KEEPS_SLOTS, INF_EPROTO);
        }
    }
    puts("halves: ok");
    return 0;
}
