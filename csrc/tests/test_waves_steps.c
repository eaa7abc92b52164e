/* Waves at the device's door: which steps may name one, and what becomes of those who wait when the
 * step that they wait for loses a creditor of its own. */
#define _GNU_SOURCE
#include <time.h>

#include "dist/wire.h"
#include "tests/tiny_model.h"

#include "tests/link_ends.h"

enum { BLOCK = 4, CHUNK = 8, CREDITOR = 1, DEBTOR = 2 };

static const uint64_t LONG_NS = UINT64_C(60000000000);

static inf_err err;

/* ---- steps of two requests, of which each may be of a wave ---- */

typedef struct one {
    uint32_t slot, pos0, local_pos0, n, wave;
    int32_t blocks[4];
} one;

static void fill(const inf_step_buffers *b, const one *all, uint32_t n) {
    *b->head = (inf_step_head){.step_id = 1, .n_seqs = n, .peer_timeout_ns = LONG_NS};
    for (uint32_t i = 0; i < n; i++) {
        const one *s = &all[i];
        uint32_t blocks = (s->pos0 + s->n - s->local_pos0 + BLOCK - 1) / BLOCK;
        b->seqs[i] = (inf_step_seq){.slot = s->slot,
                                    .token_off = b->head->n_tokens,
                                    .n_tokens = s->n,
                                    .pos0 = s->pos0,
                                    .local_pos0 = s->local_pos0,
                                    .block_off = b->head->n_blocks,
                                    .n_blocks = blocks,
                                    .span_off = b->head->n_spans,
                                    .n_spans = s->local_pos0 > 0,
                                    .wave = s->wave};
        for (uint32_t t = 0; t < s->n; t++) {
            b->tokens[b->head->n_tokens++] = (int32_t)((s->pos0 + t) * 7 % TINY_VOCAB);
        }
        memcpy(b->blocks + b->head->n_blocks, s->blocks, blocks * sizeof(int32_t));
        b->head->n_blocks += blocks;
        b->rows[b->head->n_rows++] = (inf_step_row){b->head->n_tokens - 1, i, -1, 1, 0};
        if (s->local_pos0 > 0) {
            b->spans[b->head->n_spans++] =
                (inf_step_span){.peer = CREDITOR, .handle = 1, .generation = 1, .n_tokens = CHUNK};
        }
    }
}

static void finish(inf_device *d) {
    CHECK(inf_device_wait(d, -1, &err) == INF_OK, "%s", err.message);
}

static void run(inf_device *d, const inf_step_buffers *b, const one *all, uint32_t n) {
    fill(b, all, n);
    CHECK(inf_device_submit(d, &err) == INF_OK, "%s", err.message);
    finish(d);
    for (uint32_t i = 0; i < n; i++) {
        CHECK(b->seq_out[i].status == INF_OK, "request %u: %d", i, b->seq_out[i].status);
    }
}

static void refused(inf_device *d, const inf_step_buffers *b, const one *all, uint32_t n,
                    const char *why) {
    inf_err e = {0};
    fill(b, all, n);
    CHECK(inf_device_submit(d, &e) == INF_EINVAL, "%s", why);
    CHECK(strstr(e.message, why) != NULL, "'%s' does not say '%s'", e.message, why);
}

static inf_device *open_node(const tiny_model *m, inf_step_buffers *b) {
    inf_device *d = tiny_open(m);
    CHECK(inf_device_buffers(d, b, &err) == INF_OK, "%s", err.message);
    tiny_slot(d, 0);
    tiny_slot(d, 1);
    return d;
}

/* ---- which steps may name a wave ---- */

static void steps(const tiny_model *m) {
    inf_step_buffers b;
    inf_device *d = open_node(m, &b);
    const one first = {.n = CHUNK, .wave = 2, .blocks = {5, 9, 3, 7}};
    one other = {.slot = 1, .n = 4, .wave = 4, .blocks = {20}}, next = first, bad = first;
    one both[2] = {first, other};

    refused(d, &b, &first, 1, "request 0: it cannot go on with wave 2: it is not open");
    CHECK(inf_device_wave_open(d, 2, LONG_NS, &err) == INF_OK, "%s", err.message);
    bad.wave = INF_MAX_WAVES + 1;
    refused(d, &b, &bad, 1, "wave 5: it is not open");
    refused(d, &b, both, 2, "request 1: it cannot go on with wave 4: it is not open");
    both[1].wave = 2;
    refused(d, &b, both, 2, "another request of the step has it");
    both[1].wave = 0;
    run(d, &b, both, 2); /* none of these was lost, nor held the wave */

    next.pos0 = 4; /* over what is there */
    refused(d, &b, &next, 1, "its tokens do not follow");
    next.pos0 = CHUNK + 4; /* a gap */
    next.n = 4;
    refused(d, &b, &next, 1, "its tokens do not follow");
    next.pos0 = CHUNK;
    next.blocks[1] = 8;
    refused(d, &b, &next, 1, "its blocks are others");
    next.blocks[1] = first.blocks[1];
    run(d, &b, &next, 1);

    /* Spans over other blocks than the steps', of no wave, and extended by who hosts for others. */
    CHECK(inf_device_span_wave(d, DEBTOR, 1, 1, (int32_t[]){5, 3}, 2, 2, &err) == INF_EINVAL &&
              inf_device_span_wave(d, DEBTOR, 1, 1, first.blocks, 4, 0, &err) == INF_EINVAL &&
              inf_device_span_wave(d, DEBTOR, 1, 1, first.blocks, 4, 3, &err) == INF_EINVAL &&
              inf_device_span_wave(d, DEBTOR, 1, 1, first.blocks, 4, 9, &err) == INF_EINVAL,
          "a span of other blocks or no wave");
    CHECK(inf_device_span_wave(d, DEBTOR, 1, 1, first.blocks, 3, 2, &err) == INF_OK, "%s",
          err.message);
    CHECK(inf_device_span_wave(d, DEBTOR, 1, 1, first.blocks, 4, 2, &err) == INF_EINVAL &&
              inf_device_span_set(d, DEBTOR, 1, 1, first.blocks, 4, &err) == INF_EINVAL &&
              inf_device_span_share(d, DEBTOR, 1, 1, first.blocks, 3, &err) == INF_EINVAL,
          "a wave's span was opened twice");
    CHECK(inf_device_wave_close(d, 2, &err) == INF_OK, "%s", err.message);
    refused(d, &b, &next, 1, "it is not open");

    CHECK(inf_device_wave_open(d, 2, LONG_NS, &err) == INF_OK &&
              inf_device_wave_open(d, 2, LONG_NS, &err) == INF_EINVAL &&
              inf_device_wave_open(d, 0, LONG_NS, &err) == INF_EINVAL &&
              inf_device_wave_open(d, INF_MAX_WAVES + 1, LONG_NS, &err) == INF_EINVAL &&
              inf_device_wave_open(d, 1, UINT64_MAX, &err) == INF_EINVAL &&
              inf_device_wave_close(d, 1, &err) == INF_EINVAL &&
              inf_device_wave_close(d, 0, &err) == INF_EINVAL,
          "numbers of waves");
    run(d, &b, &first, 1); /* from the front again */
    inf_device_close(d);
}

/* ---- a creditor of the wave's own step that is no more ---- */

typedef struct ends {
    inf_link *client[2], *server[2];
} ends;

static ends links(const tiny_model *m, uint32_t via) {
    uint64_t bytes[2] = {inf_device_query_slot_bytes(&m->config),
                         inf_device_move_slot_bytes(&m->config)};
    ends e;
    for (int i = 0; i < 2; i++) {
        link_ends l = make_ends(via, INF_QUERY_SLOTS, bytes[i]);
        open_ends(&l, &e.client[i], &e.server[i]);
    }
    return e;
}

static uint64_t kept(inf_device *d) {
    inf_device_stats s;
    CHECK(inf_device_stats_read(d, &s) == INF_OK, "stats");
    return s.kept_messages;
}

/* The test is the creditor: it takes the first layer's queries, and leaves once the debtor waits
 * for the second layer, or has left before. */
static void loses(const tiny_model *m, uint32_t via, int early) {
    inf_step_buffers b, mine;
    inf_device *d = open_node(m, &b), *debtor = open_node(m, &mine);
    ends to = links(m, via), from = links(m, via);
    const one wave = {.pos0 = CHUNK, .local_pos0 = CHUNK, .n = CHUNK, .wave = 1, .blocks = {5, 9}};
    const one asks[2] = {{.pos0 = CHUNK, .local_pos0 = CHUNK, .n = CHUNK, .blocks = {1, 2}},
                         {.slot = 1, .n = 4, .blocks = {20}}};
    const void *msg;
    uint64_t len;
    CHECK(inf_device_peer_attach(d, CREDITOR, to.client[0], to.client[1], &err) == INF_OK &&
              inf_device_peer_serve(d, DEBTOR, from.server[0], from.server[1], &err) == INF_OK &&
              inf_device_peer_attach(debtor, CREDITOR, from.client[0], from.client[1], &err) ==
                  INF_OK &&
              inf_device_wave_open(d, 1, LONG_NS / 2, &err) == INF_OK &&
              inf_device_span_wave(d, DEBTOR, 1, 1, wave.blocks, 2, 1, &err) == INF_OK,
          "%s", err.message);
    fill(&b, &wave, 1);
    fill(&mine, asks, 2);
    for (int i = 0; i < 2 && early; i++) {
        inf_link_close(to.server[i]);
    }
    if (early) {
        CHECK(inf_device_submit(debtor, &err) == INF_OK, "%s", err.message);
        while (kept(d) < 1) {
            (void)nanosleep(&(struct timespec){0, 100000}, NULL);
        }
    }
    CHECK(inf_device_submit(d, &err) == INF_OK, "%s", err.message);
    if (!early) {
        int status;
        while ((status = inf_link_poll(to.server[0], &msg, &len)) == INF_AGAIN) {
            (void)inf_link_wait(&to.server[0], 1, -1, 1000000);
        }
        CHECK(status == INF_OK && ((const inf_wire_head *)msg)->layer == 0, "%d", status);
        CHECK(inf_device_wave_close(d, 1, &err) == INF_EINVAL, "closed under a step");
        CHECK(inf_device_submit(debtor, &err) == INF_OK, "%s", err.message);
        while (kept(d) < 1) { /* the first layer is there, and answered */
            (void)nanosleep(&(struct timespec){0, 100000}, NULL);
        }
        for (int i = 0; i < 2; i++) {
            inf_link_close(to.server[i]);
        }
    }
    finish(d);
    CHECK(b.seq_out[0].status == INF_EPEER && b.seq_out[0].peer == CREDITOR, "%d",
          b.seq_out[0].status);
    finish(debtor);
    CHECK(mine.seq_out[0].status == INF_ESTALE && mine.seq_out[0].peer == CREDITOR &&
              mine.seq_out[1].status == INF_OK,
          "%d and %d", mine.seq_out[0].status, mine.seq_out[1].status);
    /* Of the peer nothing is lost, and of the wave there is nothing. */
    CHECK(inf_device_peer_status(debtor, CREDITOR, &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_wave_close(d, 1, &err) == INF_OK, "%s", err.message);
    uint64_t before = kept(d);
    fill(&mine, asks, 2);
    CHECK(inf_device_submit(debtor, &err) == INF_OK, "%s", err.message);
    finish(debtor);
    CHECK(mine.seq_out[0].status == INF_ESTALE && kept(d) == before, "%d", mine.seq_out[0].status);
    inf_device_close(debtor);
    inf_device_close(d);
}

int main(void) {
    tiny_model m = tiny_new(0, INF_DTYPE_F32);
    m.windows[1] = 0;
    steps(&m);
    for (uint32_t via = INF_PROVIDER_SHM; via <= INF_PROVIDER_TCP; via++) {
        loses(&m, via, 0);
        loses(&m, via, 1);
    }
    tiny_free(&m);
    puts("waves' steps: ok");
    return 0;
}
