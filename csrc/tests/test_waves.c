/* A prompt that several devices compute at the same time, chunk by chunk in turn, each asking the
 * others for partials over what these are just computing (dist/waves.c): what comes out is what one
 * device says that computes all of it, however the chunks begin and end, in halves and without,
 * beside other requests, behind a prefix that was there before, and while tokens are generated
 * afterwards. test_waves_kept has what goes wrong. */
#define _GNU_SOURCE
#include <pthread.h>
#include <time.h>

#include "dist/wire.h"
#include "tests/farther.h"
#include "tests/tiny_model.h"

#include "tests/link_ends.h"

enum { BLOCK = 4, TEXT = 150, BESIDE = 40, MORE = 3, MOST = 3, WAVE = 2, GENERATION = 5 };

static const uint64_t LONG_NS = UINT64_C(60000000000);

/* What one device says that computes everything. */
typedef struct row_want {
    int32_t best;
    float logprob, top[INF_MAX_TOP]; /* of the text's next token, and the largest */
} row_want;

typedef struct text {
    int32_t tokens[TEXT + MORE];
    row_want want[TEXT + MORE];
} text;

/* One prompt in chunks, over n devices; the request beside it on each is short and all local. */
typedef struct plan {
    uint32_t provider, n, chunk;
    const char *half_rows;
    bool prefix; /* the first chunk is computed before the waves are opened */
    uint32_t flags;
    bool beside, backwards; /* backwards: the last device begins, and asks for what has not begun */
} plan;

typedef struct node {
    const plan *p;
    const text *t, *other;
    uint32_t index, rounds, asides; /* chunks, and tokens of the request beside, that are done */
    inf_device *d;
    inf_step_buffers b;
    int32_t blocks[MOST * 16], aside[BESIDE / BLOCK];
    double worst;
    pthread_t thread;
} node;

static inf_err err;

static void text_new(text *t, uint64_t seed) {
    for (int i = 0; i < TEXT; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        t->tokens[i] = (int32_t)((seed >> 33) % TINY_VOCAB);
    }
}

/* ---- rows: scored by the text's next token, so that every row's distribution shows ---- */

static void add_rows(const inf_step_buffers *b, const text *t, uint32_t seq) {
    const inf_step_seq *s = &b->seqs[seq];
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        uint32_t next = s->pos0 + i + 1;
        b->rows[b->head->n_rows++] = (inf_step_row){
            s->token_off + i, seq, next < TEXT + MORE ? t->tokens[next] : 0, INF_MAX_TOP, 0};
    }
}

/* Appends a request's share; its spans are written by the caller before. */
static void add_seq(const inf_step_buffers *b, const text *t, inf_step_seq s,
                    const int32_t *blocks) {
    s.token_off = b->head->n_tokens;
    s.block_off = b->head->n_blocks;
    s.n_blocks = (s.pos0 + s.n_tokens - s.local_pos0 + BLOCK - 1) / BLOCK;
    memcpy(b->tokens + s.token_off, t->tokens + s.pos0, s.n_tokens * sizeof *b->tokens);
    memcpy(b->blocks + s.block_off, blocks, s.n_blocks * sizeof *blocks);
    b->seqs[b->head->n_seqs] = s;
    b->head->n_tokens += s.n_tokens;
    b->head->n_blocks += s.n_blocks;
    b->head->n_spans += s.n_spans;
    add_rows(b, t, b->head->n_seqs++);
}

static void run(inf_device *d) {
    inf_err e = {0};
    CHECK(inf_device_submit(d, &e) == INF_OK, "%s", e.message);
    CHECK(inf_device_wait(d, -1, &e) == INF_OK, "%s", e.message);
}

static double compare(const inf_step_buffers *b, uint32_t seq, const text *t, double worst) {
    CHECK(b->seq_out[seq].status == INF_OK, "request %u: status %d of peer %d", seq,
          b->seq_out[seq].status, b->seq_out[seq].peer);
    for (uint32_t r = 0; r < b->head->n_rows; r++) {
        const inf_step_seq *s = &b->seqs[seq];
        const inf_row_out *o = &b->row_out[r];
        if (b->rows[r].seq != seq) {
            continue;
        }
        const row_want *w = &t->want[s->pos0 + b->rows[r].token - s->token_off];
        worst = farther(worst, (double)o->logprob, (double)w->logprob);
        worst = o->top_ids[0] == w->best ? worst : (double)INFINITY;
        for (uint32_t k = 0; k < INF_MAX_TOP; k++) {
            worst = farther(worst, (double)o->top_logprobs[k], (double)w->top[k]);
        }
    }
    return worst;
}

/* ---- one device alone ---- */

static void alone_rows(const inf_step_buffers *b, text *t) {
    for (uint32_t r = 0; r < b->head->n_rows; r++) {
        const inf_row_out *o = &b->row_out[r];
        row_want *w = &t->want[b->seqs[0].pos0 + r];
        *w = (row_want){.best = o->top_ids[0], .logprob = o->logprob};
        memcpy(w->top, o->top_logprobs, sizeof w->top);
    }
}

/* The prompt in steps of as many tokens as they take, then MORE greedy ones. */
static void alone(const tiny_model *m, text *t) {
    inf_step_buffers b;
    inf_device *d = tiny_open(m);
    int32_t blocks[(TEXT + MORE + BLOCK - 1) / BLOCK];
    CHECK(inf_device_buffers(d, &b, &err) == INF_OK, "%s", err.message);
    tiny_slot(d, 0);
    for (int32_t i = 0; i < (int32_t)(sizeof blocks / sizeof *blocks); i++) {
        blocks[i] = i;
    }
    for (uint32_t at = 0, n; at < TEXT + MORE; at += n) {
        n = at >= TEXT ? 1 : TEXT - at < 64 ? TEXT - at : 64;
        /* The token behind the last row is not known yet; its row says what it is, and is scored
         * again by the next pass over it. */
        *b.head = (inf_step_head){.step_id = at + 1};
        add_seq(&b, t, (inf_step_seq){.n_tokens = n, .pos0 = at}, blocks);
        run(d);
        if (at + n >= TEXT && at + n < TEXT + MORE) {
            t->tokens[at + n] = b.row_out[b.head->n_rows - 1].top_ids[0];
            *b.head = (inf_step_head){.step_id = at + 1};
            add_seq(&b, t, (inf_step_seq){.n_tokens = n, .pos0 = at}, blocks);
            run(d);
        }
        alone_rows(&b, t);
    }
    inf_device_close(d);
}

/* ---- several ---- */

static uint32_t n_chunks(const plan *p) { return (TEXT + p->chunk - 1) / p->chunk; }

static uint32_t tokens_of(const plan *p, uint32_t chunk) {
    uint32_t begin = chunk * p->chunk;
    return TEXT - begin < p->chunk ? TEXT - begin : p->chunk;
}

/* Spans over what the others have of the tokens in front of a chunk; returns how many tokens. */
static uint32_t add_spans(node *v, uint32_t chunk, inf_step_seq *s) {
    const plan *p = v->p;
    uint32_t pos = 0;
    for (uint32_t q = 0; q < p->n; q++) {
        uint32_t tokens = 0;
        for (uint32_t c = q; c < chunk; c += p->n) {
            tokens += tokens_of(p, c);
        }
        if (q == v->index || tokens == 0) {
            continue;
        }
        v->b.spans[s->n_spans++] = (inf_step_span){.peer = q,
                                                   .handle = v->index,
                                                   .generation = GENERATION,
                                                   .pos0 = pos,
                                                   .n_tokens = tokens};
        pos += tokens;
    }
    return pos;
}

static void step_of(node *v, uint32_t chunk, uint32_t first, uint32_t n, uint32_t wave) {
    const plan *p = v->p;
    inf_step_seq s = {.slot = 0, .pos0 = first, .n_tokens = n, .wave = wave};
    *v->b.head =
        (inf_step_head){.step_id = first + 1, .peer_timeout_ns = LONG_NS, .flags = p->flags};
    s.local_pos0 = add_spans(v, chunk, &s);
    add_seq(&v->b, v->t, s, v->blocks);
    uint32_t aside = v->asides == 0 ? 3 : 1;
    if (p->beside) {
        inf_step_seq other = {.slot = 1, .pos0 = v->asides, .n_tokens = aside};
        other.span_off = v->b.head->n_spans;
        add_seq(&v->b, v->other, other, v->aside);
    }
    run(v->d);
    v->worst = compare(&v->b, 0, v->t, v->worst);
    if (p->beside) {
        CHECK(compare(&v->b, 1, v->other, 0) < 1e-4, "the request beside the wave's is off");
        v->asides += aside;
    }
}

static void *node_main(void *arg) {
    node *v = arg;
    for (uint32_t c = v->index + v->rounds * v->p->n; c < n_chunks(v->p); c += v->p->n) {
        step_of(v, c, c * v->p->chunk, tokens_of(v->p, c), WAVE);
        v->rounds++;
    }
    return NULL;
}

static inf_device_stats stats(inf_device *d) {
    inf_device_stats s;
    CHECK(inf_device_stats_read(d, &s) == INF_OK, "stats");
    return s;
}

static void join(const plan *p, const tiny_model *m, node *debtor, node *creditor) {
    uint64_t bytes[2] = {inf_device_query_slot_bytes(&m->config),
                         inf_device_move_slot_bytes(&m->config)};
    inf_link *client[2], *server[2];
    for (int i = 0; i < 2; i++) {
        link_ends e = make_ends(p->provider, INF_QUERY_SLOTS, bytes[i]);
        open_ends(&e, &client[i], &server[i]);
    }
    CHECK(inf_device_peer_serve(creditor->d, debtor->index, server[0], server[1], &err) == INF_OK,
          "%s", err.message);
    CHECK(inf_device_peer_attach(debtor->d, creditor->index, client[0], client[1], &err) == INF_OK,
          "%s", err.message);
}

static void node_open(node *v, const plan *p, const tiny_model *m, uint32_t index, const text *t,
                      const text *other) {
    *v = (node){.p = p, .t = t, .other = other, .index = index};
    CHECK(setenv("INFINITE_HALF_ROWS", p->half_rows, 1) == 0, "setenv");
    v->d = tiny_open(m);
    CHECK(inf_device_buffers(v->d, &v->b, &err) == INF_OK, "%s", err.message);
    for (int32_t i = 0; i < MOST * 16; i++) { /* in no order, and apart from the aside's */
        v->blocks[i] = (i * 5 + (int32_t)index) % (MOST * 16);
    }
    for (int32_t i = 0; i < BESIDE / BLOCK; i++) {
        v->aside[i] = MOST * 16 + i;
    }
    tiny_slot(v->d, 0);
    tiny_slot(v->d, 1);
}

static int32_t blocks_of(const node *v) {
    uint32_t tokens = 0;
    for (uint32_t c = v->index; c < n_chunks(v->p); c += v->p->n) {
        tokens += tokens_of(v->p, c);
    }
    return (int32_t)((tokens + BLOCK - 1) / BLOCK);
}

/* All blocks of a device's chunks, for every other one. */
static void open_waves(node *v, uint32_t n) {
    CHECK(inf_device_wave_open(v->d, WAVE, LONG_NS / 2, &err) == INF_OK, "%s", err.message);
    for (uint32_t q = 0; q < n; q++) {
        CHECK(q == v->index || inf_device_span_wave(v->d, q, q, GENERATION, v->blocks, blocks_of(v),
                                                    WAVE, &err) == INF_OK,
              "%s", err.message);
    }
}

static void start(node *v) {
    CHECK(pthread_create(&v->thread, NULL, node_main, v) == 0, "no thread");
}

/* Until the node keeps so many messages at once, or has. */
static void await_kept(const node *v, uint64_t n) {
    while (stats(v->d).kept_messages < n) {
        (void)nanosleep(&(struct timespec){0, 100000}, NULL);
    }
}

/* A move writes to none of a wave's blocks, neither before nor after its end. */
static void refuses_moves(node *from, uint32_t peer, int32_t n, int32_t status) {
    inf_move_done done;
    int32_t mine[1] = {60};
    CHECK(inf_device_move_post(from->d, peer, from->index, GENERATION, (uint32_t)n - 1, mine, 1, 9,
                               &err) == INF_OK &&
              inf_device_move_wait(from->d, INT64_C(60000000000), &done, &err) == INF_OK,
          "%s", err.message);
    CHECK(done.status == status, "a move into a wave's blocks: %d", done.status);
}

/* Tokens behind the prompt, by who has the last chunk, over what are shared spans now. */
static void decode(node *v) {
    uint32_t chunks = n_chunks(v->p);
    for (uint32_t i = 0; i < MORE; i++) {
        step_of(v, chunks - 1, TEXT + i, 1, 0);
    }
}

/* How far the rows are from what one device says. */
static double wave(const plan *p, const tiny_model *m, const text *t, const text *other) {
    node nodes[MOST];
    for (uint32_t i = 0; i < p->n; i++) {
        node_open(&nodes[i], p, m, i, t, other);
    }
    for (uint32_t i = 0; i < p->n * p->n; i++) {
        if (i / p->n != i % p->n) {
            join(p, m, &nodes[i / p->n], &nodes[i % p->n]);
        }
    }
    if (p->prefix) { /* it needs nobody */
        step_of(&nodes[0], 0, 0, p->chunk, 0);
        nodes[0].rounds++;
    }
    for (uint32_t i = 0; i < p->n; i++) {
        open_waves(&nodes[i], p->n);
    }
    refuses_moves(&nodes[1], 0, blocks_of(&nodes[0]), INF_ESTALE);
    for (uint32_t i = 0; i < p->n; i++) {
        start(&nodes[p->backwards ? p->n - 1 - i : i]);
        if (p->backwards && i == 0) {
            await_kept(&nodes[0], 1); /* whose step has not begun */
        }
    }
    double worst = 0;
    for (uint32_t i = 0; i < p->n; i++) {
        CHECK(pthread_join(nodes[i].thread, NULL) == 0, "join");
    }
    for (uint32_t i = 0; i < p->n; i++) {
        CHECK(inf_device_wave_close(nodes[i].d, WAVE, &err) == INF_OK, "%s", err.message);
        CHECK(inf_device_wave_close(nodes[i].d, WAVE, &err) == INF_EINVAL, "closed twice");
        bool halved = stats(nodes[i].d).halved_steps > 0;
        CHECK(halved == (atoi(p->half_rows) > 0), "halved: %d", halved);
    }
    node *last = &nodes[(n_chunks(p) - 1) % p->n];
    CHECK(n_chunks(p) > p->n && TEXT % BLOCK != 0, "the last one's last block is not full");
    refuses_moves(&nodes[(last->index + 1) % p->n], last->index, blocks_of(last), INF_ESTALE);
    decode(last);
    for (uint32_t i = 0; i < p->n; i++) {
        worst = nodes[i].worst <= worst ? worst : nodes[i].worst;
        inf_device_close(nodes[i].d);
    }
    return worst;
}

static void cannot(const tiny_model *good) {
    tiny_model windowed = *good, weightless = *good;
    inf_device *d[3];
    windowed.windows[1] = TINY_WINDOW;
    weightless.config.model_flags |= INF_MODEL_NO_WEIGHTS;
    d[0] = tiny_open(&windowed);
    CHECK(inf_device_open(&weightless.config, good->inv_freq, good->windows, &d[1], &err) ==
                  INF_OK &&
              inf_device_ready(d[1], &err) == INF_OK,
          "%s", err.message);
    tiny_model cut = *good;
    cut.config.tensor_parallel = 2;
    d[2] = tiny_open(&cut);
    for (int i = 0; i < 3; i++) {
        CHECK(inf_device_wave_open(d[i], 1, 1, &err) == INF_EUNSUPPORTED &&
                  strncmp(err.message, "cannot open a wave: ", 20) == 0,
              "device %d: %s", i, err.message);
        inf_device_close(d[i]);
    }
}

int main(void) {
    tiny_model m = tiny_new(INF_MODEL_QK_NORM, INF_DTYPE_F32);
    static text t, other;
    m.windows[1] = 0;
    cannot(&m);
    text_new(&t, 3);
    text_new(&other, 4);
    alone(&m, &t);
    alone(&m, &other);
    for (uint32_t provider = INF_PROVIDER_SHM; provider <= INF_PROVIDER_TCP; provider++) {
        const plan plans[] = {
            {provider, 2, 24, "0", false, 0, false, false},
            {provider, 2, 24, "9", false, 0, false, false},
            {provider, 2, 8, "0", false, 0, true, true},
            {provider, 3, 20, "10", false, 0, false, true},
            {provider, 3, 16, "0", true, 0, true, false},
            {provider, 2, 40, "8", false, 0, true, true},
        };
        for (size_t i = 0; i < sizeof plans / sizeof *plans; i++) {
            double off = wave(&plans[i], &m, &t, &other);
            CHECK(off < 1e-4, "plan %zu: off by %g", i, off);
        }
        plan empty = plans[0];
        empty.flags = INF_STEP_EMPTY_REMOTE;
        double off = wave(&empty, &m, &t, &other);
        CHECK(off > 1e-2, "without the partials it is off by %g only", off);
    }
    tiny_free(&m);
    puts("waves: ok");
    return 0;
}
