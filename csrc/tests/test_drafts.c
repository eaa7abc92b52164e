/* Steps that sample behind drafts: whatever the drafts are, the tokens and their log probabilities
 * are those of one token a step. With penalties, bias and draws by weight, two requests at once, of
 * which one has no drafts. */
#include "tests/tiny_model.h"

enum { PROMPT = 6, ANSWER = 30, TEXT = PROMPT + ANSWER, BLOCKS = 12, BLOCK_SIZE = 4, MOST = 5 };

typedef struct answer {
    int32_t tokens[TEXT + MOST];
    inf_row_out rows[TEXT + MOST]; /* of the token at that place */
    uint32_t steps, taken;         /* drafts that held */
} answer;

static uint64_t rng = 9;
static uint32_t below(uint32_t n) {
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng >> 33) % n;
}

static void open_slots(inf_device *d, const inf_sampling *s, const answer *a, uint32_t n,
                       uint32_t first) {
    const int32_t ids[] = {3, 11, 3};
    const float bias[] = {0.5f, 1.0f, -0.25f};
    inf_err err = {0};
    for (uint32_t i = 0; i < n; i++) {
        CHECK(inf_device_slot_open(d, first + i, s, a[i].tokens, PROMPT, PROMPT - 1, ids, bias, 3,
                                   &err) == INF_OK,
              "%s", err.message);
    }
}

/* Puts a request into the step: its tokens from done on that are known, and the drafts. */
static void add(inf_step_buffers *b, uint32_t slot, const int32_t *tokens, uint32_t done,
                uint32_t known, uint32_t drafts) {
    inf_step_head *h = b->head;
    uint32_t n = known - done + drafts, blocks = (known + drafts + BLOCK_SIZE - 1) / BLOCK_SIZE;
    b->seqs[h->n_seqs] = (inf_step_seq){.slot = slot,
                                        .token_off = h->n_tokens,
                                        .n_tokens = n,
                                        .pos0 = done,
                                        .block_off = h->n_blocks,
                                        .n_blocks = blocks};
    memcpy(b->tokens + h->n_tokens, tokens + done, n * sizeof(int32_t));
    for (uint32_t k = 0; k < blocks; k++) {
        b->blocks[h->n_blocks++] = (int32_t)(slot * BLOCKS + k);
    }
    for (uint32_t k = 0; k <= drafts; k++) {
        b->rows[h->n_rows++] =
            (inf_step_row){h->n_tokens + known - done - 1 + k, h->n_seqs, -1, 2, 0};
    }
    h->n_tokens += n;
    h->n_seqs++;
}

/* The answers of n requests, in slots from first on. want: drafts come from there, some of them
 * wrong; NULL: none. The last request never has any. */
static void generate(inf_device *d, answer *a, uint32_t n, uint32_t first, const answer *want) {
    uint32_t done[2] = {0}, known[2] = {PROMPT, PROMPT};
    inf_step_buffers b;
    inf_err err = {0};
    CHECK(inf_device_buffers(d, &b, &err) == INF_OK, "%s", err.message);
    while (known[0] < TEXT || known[n - 1] < TEXT) {
        uint32_t drafts[2] = {0}, row = 0;
        *b.head = (inf_step_head){.step_id = 1};
        for (uint32_t i = 0; i < n; i++) {
            for (uint32_t most = want != NULL && i == 0 ? below(MOST + 1) : 0; drafts[i] < most;
                 drafts[i]++) {
                int32_t right = want[i].tokens[known[i] + drafts[i]];
                a[i].tokens[known[i] + drafts[i]] =
                    below(5) == 0 ? (int32_t)below(TINY_VOCAB) : right;
            }
            if (known[i] < TEXT) {
                drafts[i] = known[i] + drafts[i] < TEXT ? drafts[i] : 0;
                add(&b, first + i, a[i].tokens, done[i], known[i], drafts[i]);
            }
        }
        CHECK(inf_device_submit(d, &err) == INF_OK, "%s", err.message);
        CHECK(inf_device_wait(d, -1, &err) == INF_OK, "%s", err.message);
        for (uint32_t i = 0; i < n; i++) {
            if (known[i] >= TEXT) {
                continue;
            }
            uint32_t held = 0;
            while (held < drafts[i] &&
                   b.row_out[row + held].token == a[i].tokens[known[i] + held]) {
                held++;
            }
            for (uint32_t k = 0; k <= held; k++) {
                a[i].tokens[known[i] + k] = b.row_out[row + k].token;
                a[i].rows[known[i] + k] = b.row_out[row + k];
            }
            done[i] = known[i] + held;
            known[i] += held + 1;
            a[i].taken += held;
            a[i].steps++;
            row += drafts[i] + 1;
        }
    }
}

static void test_drafts(const char *name, inf_sampling s) {
    static answer plain[2], fast[2];
    tiny_model m = tiny_new(0, INF_DTYPE_F32);
    inf_device *d = tiny_open(&m);
    memset(plain, 0, sizeof plain);
    memset(fast, 0, sizeof fast);
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t t = 0; t < PROMPT; t++) {
            plain[i].tokens[t] = fast[i].tokens[t] = (int32_t)below(TINY_VOCAB);
        }
    }
    open_slots(d, &s, plain, 2, 0);
    generate(d, plain, 2, 0, NULL);
    open_slots(d, &s, fast, 2, 2);
    generate(d, fast, 2, 2, plain);
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t t = PROMPT; t < TEXT; t++) {
            const inf_row_out *p = &plain[i].rows[t], *f = &fast[i].rows[t];
            CHECK(plain[i].tokens[t] == fast[i].tokens[t], "%s: request %u, token %u: %d for %d",
                  name, i, t, fast[i].tokens[t], plain[i].tokens[t]);
            CHECK(p->rank == f->rank && p->top_ids[1] == f->top_ids[1] &&
                      fabs((double)p->logprob - (double)f->logprob) < 1e-4,
                  "%s: request %u, row %u: %g for %g", name, i, t, (double)f->logprob,
                  (double)p->logprob);
        }
    }
    CHECK(plain[0].steps == ANSWER && fast[1].steps == ANSWER, "%u, %u", plain[0].steps,
          fast[1].steps);
    CHECK(fast[0].steps < ANSWER * 2 / 3 && fast[0].taken >= ANSWER / 3, "%s: %u steps, %u held",
          name, fast[0].steps, fast[0].taken);
    inf_device_close(d);
    tiny_free(&m);
}

static void run(inf_device *d) {
    inf_err err = {0};
    CHECK(inf_device_submit(d, &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_wait(d, -1, &err) == INF_OK, "%s", err.message);
}

/* A row that comes to nothing fails its request where its token would be of the text, and not
 * behind a wrong draft. Here a logit is infinite once its token was generated twice. */
static void test_bad_row(void) {
    static answer a;
    tiny_model m = tiny_new(0, INF_DTYPE_F32);
    inf_device *d = tiny_open(&m);
    inf_sampling s = {.top_p = 1, .repetition = 1, .frequency = 3e38f};
    inf_step_buffers b;
    inf_err err = {0};
    CHECK(inf_device_buffers(d, &b, &err) == INF_OK, "%s", err.message);
    memset(&a, 0, sizeof a);
    open_slots(d, &s, &a, 1, 0);
    *b.head = (inf_step_head){.step_id = 1};
    add(&b, 0, a.tokens, 0, PROMPT, 0);
    run(d);
    int32_t right = b.row_out[0].token, wrong = right == 7 ? 8 : 7;
    CHECK(b.seq_out[0].status == INF_OK && right >= 0, "token %d", right);
    for (int held = 0; held < 2; held++) {
        open_slots(d, &s, &a, 1, 1);
        a.tokens[PROMPT] = held ? right : wrong;
        a.tokens[PROMPT + 1] = a.tokens[PROMPT];
        *b.head = (inf_step_head){.step_id = 2};
        add(&b, 1, a.tokens, 0, PROMPT, 2);
        if (held) { /* or it would not be drawn again */
            memset(b.masks, 0, TINY_VOCAB / 8);
            b.masks[right / 32] = 1u << (right % 32);
            b.rows[1].mask = 1;
        }
        run(d);
        CHECK(b.row_out[0].token == right && b.row_out[2].token == -1, "tokens %d and %d for %d",
              b.row_out[0].token, b.row_out[2].token, right);
        CHECK(b.seq_out[0].status == (held ? INF_ENOTFINITE : INF_OK), "held %d: status %d", held,
              b.seq_out[0].status);
    }
    inf_device_close(d);
    tiny_free(&m);
}

int main(void) {
    test_bad_row();
    test_drafts("greedy", (inf_sampling){.top_p = 1, .repetition = 1});
    test_drafts("drawn", (inf_sampling){.temperature = 1, .top_p = 1, .repetition = 1, .seed = 5});
    test_drafts("cut",
                (inf_sampling){
                    .temperature = 0.9f, .top_p = 0.8f, .top_k = 20, .repetition = 1, .seed = 6});
    /* Strong ones, so that a token that is not counted, or counted twice, shows. */
    test_drafts("penalties, greedy",
                (inf_sampling){.top_p = 1, .repetition = 1.5f, .presence = 1, .frequency = 1});
    test_drafts("penalties, drawn", (inf_sampling){.temperature = 1.2f,
                                                   .top_p = 0.95f,
                                                   .repetition = 1.3f,
                                                   .presence = 0.5f,
                                                   .frequency = 1,
                                                   .seed = 7});
    puts("drafts: ok");
    return 0;
}
