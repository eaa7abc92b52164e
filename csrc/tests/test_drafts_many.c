/* Drafts of many requests at once, in more rows than are sampled in a piece: each with other
 * sampling, some with masks or rows of their prompt, some begun anew in another slot in
 * mid-answer. Tokens and log probabilities are those of one token a step. */
#include "tests/tiny_model.h"

enum {
    REQUESTS = 12,
    SLOTS = REQUESTS + 2,
    PROMPT = 5,
    ANSWER = 32,
    MASKED = 2, /* requests with masks, of which a step has one for each slot */
    TEXT = PROMPT + ANSWER,
    BLOCK_SIZE = 4,
    BLOCKS = TEXT / BLOCK_SIZE + 1,
    WORDS = (TINY_VOCAB + 31) / 32
};

typedef struct request {
    uint32_t slot, done, known;
    int masked, prompted; /* its answer has masks; rows of its prompt were asked for */
    int32_t tokens[TEXT];
    inf_row_out rows[TEXT]; /* of the token at that place */
} request;

static uint64_t rng = 3;
static uint32_t below(uint32_t n) {
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng >> 33) % n;
}

static inf_sampling sampling_of(uint32_t i) {
    inf_sampling s = {.top_p = 1, .repetition = 1, .seed = i};
    s.temperature = i % 3 == 0 ? 0 : 1;
    s.top_p = i % 4 == 1 ? 0.8f : 1;
    s.top_k = i % 5 == 2 ? 9 : 0;
    if (i % 4 != 3) { /* strong ones, so that a token that is not counted, or twice, shows */
        s.repetition = 1.4f, s.presence = 0.7f, s.frequency = 1;
    }
    return s;
}

static void open_slot(inf_device *d, uint32_t i, const request *r) {
    const int32_t ids[] = {3, 11, (int32_t)i};
    const float bias[] = {0.5f, 1.0f, -0.25f};
    inf_sampling s = sampling_of(i);
    inf_err err = {0};
    CHECK(inf_device_slot_open(d, r->slot, &s, r->tokens, r->known, PROMPT, ids, bias,
                               (int32_t)(i % 3), &err) == INF_OK,
          "%s", err.message);
}

/* Allows half of the vocabulary, another half at each place. */
static void put_mask(inf_step_buffers *b, uint32_t *masks, uint32_t i, uint32_t at,
                     inf_step_row *row) {
    uint32_t x = (i * 1000 + at) * 2654435761u;
    uint32_t *to = b->masks + (uint64_t)*masks * WORDS;
    to[0] = x ^ 0x5a5a5a5au, to[1] = ~x;
    row->mask = ++*masks;
}

/* The share of request i, with drafts behind its known tokens. Returns its first row that
 * samples. */
static uint32_t add(inf_step_buffers *b, uint32_t i, request *r, const int32_t *drafts, uint32_t n,
                    uint32_t *masks) {
    inf_step_head *h = b->head;
    uint32_t n_tokens = r->known - r->done + n, end = r->known + n;
    uint32_t blocks = (end + BLOCK_SIZE - 1) / BLOCK_SIZE;
    b->seqs[h->n_seqs] = (inf_step_seq){.slot = r->slot,
                                        .token_off = h->n_tokens,
                                        .n_tokens = n_tokens,
                                        .pos0 = r->done,
                                        .block_off = h->n_blocks,
                                        .n_blocks = blocks};
    memcpy(b->tokens + h->n_tokens, r->tokens + r->done, (r->known - r->done) * sizeof(int32_t));
    if (n > 0) {
        memcpy(b->tokens + h->n_tokens + r->known - r->done, drafts, n * sizeof(int32_t));
    }
    for (uint32_t k = 0; k < blocks; k++) {
        b->blocks[h->n_blocks++] = (int32_t)(i * BLOCKS + k);
    }
    if (r->prompted && r->done == 0) {
        for (uint32_t k = 0; k + 1 < PROMPT; k++) {
            b->rows[h->n_rows++] =
                (inf_step_row){h->n_tokens + k, h->n_seqs, r->tokens[k + 1], 1, 0};
        }
    }
    uint32_t first = h->n_rows;
    for (uint32_t k = 0; k <= n; k++) {
        inf_step_row *row = &b->rows[h->n_rows++];
        *row = (inf_step_row){h->n_tokens + r->known - r->done - 1 + k, h->n_seqs, -1, 2, 0};
        if (r->masked) {
            put_mask(b, masks, i, r->known + k, row);
        }
    }
    h->n_tokens += n_tokens;
    h->n_seqs++;
    return first;
}

static uint32_t guess(int32_t *drafts, const request *r, const request *want, uint32_t masks) {
    uint32_t n = below(3) == 0 ? below(INF_MAX_DRAFTS) : INF_MAX_DRAFTS, left = TEXT - r->known - 1;
    n = n < left ? n : left;
    n = r->masked && n >= masks ? masks - 1 : n;
    for (uint32_t k = 0; k < n; k++) {
        int wrong = below(16) == 0;
        drafts[k] = wrong ? (int32_t)below(TINY_VOCAB) : want->tokens[r->known + k];
    }
    return n;
}

/* Begins anew in a slot that nobody has. */
static void restart(inf_device *d, uint32_t i, request *r, uint32_t *spare) {
    uint32_t slot = r->slot;
    r->slot = *spare, *spare = slot;
    r->done = 0;
    open_slot(d, i, r);
}

/* A step that samples nothing: what the requests computed last once more. */
static void quiet_step(inf_device *d, inf_step_buffers *b, request *all) {
    inf_err err = {0};
    uint32_t masks = 0;
    *b->head = (inf_step_head){.step_id = 1};
    for (uint32_t i = 0; i < REQUESTS; i++) {
        request again = all[i];
        if (again.known < TEXT && again.done > 0) {
            again.known = again.done--;
            (void)add(b, i, &again, NULL, 0, &masks);
        }
    }
    b->head->n_rows = 0;
    if (b->head->n_seqs > 0) {
        CHECK(inf_device_submit(d, &err) == INF_OK, "%s", err.message);
        CHECK(inf_device_wait(d, -1, &err) == INF_OK, "%s", err.message);
    }
}

/* want: drafts come from there; NULL: none. Returns the most rows of a step. */
static uint32_t generate(inf_device *d, request *all, const request *want) {
    uint32_t most = 0, spare = REQUESTS;
    inf_step_buffers b;
    inf_err err = {0};
    CHECK(inf_device_buffers(d, &b, &err) == INF_OK, "%s", err.message);
    for (;;) {
        int32_t drafts[REQUESTS][INF_MAX_DRAFTS];
        uint32_t n[REQUESTS] = {0}, first[REQUESTS] = {0}, masks = 0, live = 0;
        if (want != NULL && below(4) == 0) {
            quiet_step(d, &b, all);
        }
        *b.head = (inf_step_head){.step_id = 1};
        for (uint32_t i = 0; i < REQUESTS; i++) {
            request *r = &all[i];
            if (r->known >= TEXT || (want != NULL && below(8) == 0)) {
                live += r->known < TEXT; /* it goes without this step */
                n[i] = UINT32_MAX;
                continue;
            }
            live++;
            if (want != NULL && below(15) == 0) {
                restart(d, i, r, &spare);
            }
            n[i] = want == NULL ? 0 : guess(drafts[i], r, &want[i], SLOTS / MASKED);
            first[i] = add(&b, i, r, drafts[i], n[i], &masks);
        }
        if (live == 0) {
            return most;
        }
        if (b.head->n_seqs == 0) {
            continue;
        }
        most = b.head->n_rows > most ? b.head->n_rows : most;
        CHECK(inf_device_submit(d, &err) == INF_OK, "%s", err.message);
        CHECK(inf_device_wait(d, -1, &err) == INF_OK, "%s", err.message);
        for (uint32_t i = 0; i < REQUESTS; i++) {
            request *r = &all[i];
            uint32_t held = 0;
            for (; n[i] != UINT32_MAX && held <= n[i]; held++) {
                inf_row_out *out = &b.row_out[first[i] + held];
                r->tokens[r->known + held] = out->token;
                r->rows[r->known + held] = *out;
                if (held == n[i] || out->token != drafts[i][held]) {
                    r->done = r->known + held;
                    r->known = r->done + 1;
                    break;
                }
            }
        }
    }
}

static void begin(inf_device *d, request *all) {
    for (uint32_t i = 0; i < REQUESTS; i++) {
        request *r = &all[i];
        r->slot = i, r->done = 0, r->known = PROMPT;
        r->masked = i % (REQUESTS / MASKED) == 1;
        r->prompted = i % 3 == 1;
        for (uint32_t t = 0; t < PROMPT; t++) {
            r->tokens[t] = (int32_t)((i * 7 + t * 5) % TINY_VOCAB);
        }
        open_slot(d, i, r);
    }
}

int main(void) {
    static request plain[REQUESTS], fast[REQUESTS];
    tiny_model m = tiny_new(0, INF_DTYPE_F32);
    m.config.max_seqs = SLOTS;
    m.config.max_tokens = m.config.max_rows = REQUESTS * TEXT;
    m.config.num_blocks = m.config.max_step_blocks = REQUESTS * BLOCKS;
    inf_device *d = tiny_open(&m);
    begin(d, plain);
    (void)generate(d, plain, NULL);
    uint32_t most = 0;
    for (int round = 0; round < 2; round++) {
        begin(d, fast);
        uint32_t rows = generate(d, fast, plain);
        most = rows > most ? rows : most;
        for (uint32_t i = 0; i < REQUESTS; i++) {
            for (uint32_t t = PROMPT; t < TEXT; t++) {
                const inf_row_out *p = &plain[i].rows[t], *f = &fast[i].rows[t];
                CHECK(p->token == f->token && p->rank == f->rank &&
                          p->top_ids[1] == f->top_ids[1] &&
                          fabs((double)p->logprob - (double)f->logprob) < 1e-4,
                      "round %d, request %u, token %u: %d (%g) for %d (%g)", round, i, t, f->token,
                      (double)f->logprob, p->token, (double)p->logprob);
            }
        }
    }
    CHECK(most > 128, "%u rows in a step at most", most);
    inf_device_close(d);
    tiny_free(&m);
    puts("drafts of many: ok");
    return 0;
}
