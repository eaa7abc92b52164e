/* What a step computes: against the plain forward pass, and against itself when the same tokens
 * come in one chunk, in ragged chunks, one by one, alone and among others. */
#include "tests/farther.h"
#include "tests/tiny_model.h"

enum { TEXT = 45, BLOCKS = 12 };
static uint32_t block_size = 4;

static void text_of(int32_t *tokens, uint64_t seed) {
    for (int i = 0; i < TEXT; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        tokens[i] = (int32_t)(seed >> 33) % TINY_VOCAB;
    }
}

/* A request of the test: its text, its blocks in shuffled order, how far it is computed. */
typedef struct request {
    int32_t tokens[TEXT], blocks[BLOCKS];
    uint32_t slot, done;
    inf_row_out rows[TEXT];
} request;

static request new_request(uint32_t slot) {
    request r = {.slot = slot};
    text_of(r.tokens, slot + 5);
    for (int i = 0; i < BLOCKS; i++) { /* 12 blocks of 64, no two requests share one */
        r.blocks[i] = (int32_t)((uint32_t)(i * 5) % BLOCKS * 4 + slot);
    }
    return r;
}

/* One step that advances each request by its number of tokens and reads a row after every token. */
static void advance(inf_device *d, request **requests, const uint32_t *n, uint32_t count) {
    inf_step_buffers b;
    inf_err err = {0};
    CHECK(inf_device_buffers(d, &b, &err) == INF_OK, "%s", err.message);
    *b.head = (inf_step_head){.step_id = 1, .n_seqs = count};
    for (uint32_t i = 0; i < count; i++) {
        request *r = requests[i];
        uint32_t blocks = (r->done + n[i] + block_size - 1) / block_size;
        b.seqs[i] = (inf_step_seq){.slot = r->slot,
                                   .token_off = b.head->n_tokens,
                                   .n_tokens = n[i],
                                   .pos0 = r->done,
                                   .block_off = b.head->n_blocks,
                                   .n_blocks = blocks};
        memcpy(b.tokens + b.head->n_tokens, r->tokens + r->done, n[i] * sizeof(int32_t));
        memcpy(b.blocks + b.head->n_blocks, r->blocks, blocks * sizeof(int32_t));
        for (uint32_t t = 0; t < n[i]; t++) {
            int32_t next = r->done + t + 1 < TEXT ? r->tokens[r->done + t + 1] : 0;
            b.rows[b.head->n_rows++] =
                (inf_step_row){b.head->n_tokens + t, i, next, INF_MAX_TOP, 0};
        }
        b.head->n_tokens += n[i];
        b.head->n_blocks += blocks;
    }
    CHECK(inf_device_submit(d, &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_submit(d, &err) == INF_EINVAL, "a second step in flight");
    CHECK(inf_device_wait(d, -1, &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_wait(d, 0, &err) == INF_EINVAL, "nothing to wait for");
    uint32_t row = 0;
    for (uint32_t i = 0; i < count; i++) {
        CHECK(b.seq_out[i].status == INF_OK && b.seq_out[i].peer == -1, "%d", b.seq_out[i].status);
        memcpy(requests[i]->rows + requests[i]->done, b.row_out + row, n[i] * sizeof(inf_row_out));
        row += n[i];
        requests[i]->done += n[i];
    }
}

static void run_chunks(inf_device *d, request *r, const uint32_t *chunks, int n) {
    tiny_slot(d, r->slot);
    for (int i = 0; i < n; i++) {
        advance(d, &r, &chunks[i], 1);
    }
    CHECK(r->done == TEXT, "%u", r->done);
}

/* Largest distance of the reported log probabilities from the reference's. */
static double distance(const request *r, double reference[][TINY_VOCAB]) {
    double worst = 0;
    for (int t = 0; t < TEXT; t++) {
        const inf_row_out *o = &r->rows[t];
        worst = farther(worst, (double)o->logprob, reference[t][o->token]);
        CHECK(o->n_top == INF_MAX_TOP, "%u", o->n_top);
        for (uint32_t k = 0; k < o->n_top; k++) {
            worst = farther(worst, (double)o->top_logprobs[k], reference[t][o->top_ids[k]]);
        }
    }
    return worst;
}

static void test_chunks(uint32_t flags, int32_t dtype, int32_t isa, double tolerance) {
    static double want[TEXT][TINY_VOCAB];
    tiny_model m = tiny_new(flags, dtype);
    m.config.isa = isa;
    if (!tiny_is_supported(&m)) {
        tiny_free(&m);
        return;
    }
    inf_device *d = tiny_open(&m);
    const uint32_t whole[] = {45}, ragged[] = {1, 7, 4, 13, 2, 5, 13};
    uint32_t ones[TEXT];
    for (int i = 0; i < TEXT; i++) {
        ones[i] = 1;
    }
    const struct {
        const char *name;
        const uint32_t *sizes;
        int n;
    } ways[] = {{"whole", whole, 1}, {"ragged", ragged, 7}, {"one by one", ones, TEXT}};
    for (int i = 0; i < 3; i++) {
        request r = new_request(0);
        tiny_reference(&m, r.tokens, TEXT, want);
        run_chunks(d, &r, ways[i].sizes, ways[i].n);
        double worst = distance(&r, want);
        CHECK(worst < tolerance, "%s, flags %u, isa %s: off by %g", ways[i].name, flags,
              inf_device_isa(d), worst);
    }
    inf_device_stats stats;
    CHECK(inf_device_stats_read(d, &stats) == INF_OK && stats.steps == 53 &&
              stats.tokens == 3 * TEXT,
          "%llu steps", (unsigned long long)stats.steps);
    inf_device_close(d);
    tiny_free(&m);
}

/* KV in e4m3: as the reference that rounds K and V, further away from the one that does not, and on
 * a GPU as on the CPU. */
static void test_e4m3(uint32_t flags, int32_t isa, double tolerance) {
    static double want[TEXT][TINY_VOCAB], exact[TEXT][TINY_VOCAB];
    tiny_model m = tiny_new(flags, INF_DTYPE_F32);
    m.config.isa = isa;
    uint64_t wide = inf_device_block_bytes(&m.config);
    request r[2] = {new_request(0), new_request(0)};
    tiny_reference(&m, r[0].tokens, TEXT, exact);
    m.config.kv_dtype = INF_DTYPE_E4M3;
    tiny_reference(&m, r[0].tokens, TEXT, want);
    CHECK(inf_device_block_bytes(&m.config) * 4 == wide, "bytes");
    const uint32_t ragged[] = {1, 7, 4, 13, 2, 5, 13};
    int both = m.config.gpu > 0 ? 2 : 1;
    for (int i = 0; i < both; i++) {
        m.config.gpu = i == 0 ? m.config.gpu : 0;
        if (!tiny_is_supported(&m)) {
            tiny_free(&m);
            return;
        }
        inf_device *d = tiny_open(&m);
        run_chunks(d, &r[i], ragged, 7);
        double off = distance(&r[i], want), from_exact = distance(&r[i], exact);
        CHECK(off < tolerance && from_exact > 2 * tolerance && from_exact < 1,
              "flags %u, isa %s: off by %g, and by %g from KV as it came", flags, inf_device_isa(d),
              off, from_exact);
        inf_device_close(d);
    }
    double apart = 0;
    for (int t = 0; t < TEXT && both == 2; t++) {
        apart = fmax(apart, fabs((double)r[0].rows[t].logprob - (double)r[1].rows[t].logprob));
    }
    CHECK(apart < tolerance, "the GPU and the CPU are %g apart", apart);
    tiny_free(&m);
}

/* KV in e4m3 by a GPU's tensor cores, which take this head_dim where blocks are of 8 tokens, and by
 * the plain kernel where they are of 4: the same but for rounding to f16, after which a few numbers
 * of the second layer's K and V round to the other side. */
static void test_e4m3_products(double tolerance) {
    static double exact[TEXT][TINY_VOCAB];
    static request r[2];
    const uint32_t chunks[] = {30, 1, 1, 1, 9, 1, 1, 1};
    for (int i = 0; i < 2; i++) {
        tiny_model m = tiny_new_with(0, INF_DTYPE_F16, 2, 1, 64, i == 0 ? 4 : 8);
        r[i] = new_request(0);
        tiny_reference(&m, r[i].tokens, TEXT, exact);
        m.config.kv_dtype = INF_DTYPE_E4M3;
        block_size = (uint32_t)m.config.block_size;
        inf_device *d = tiny_open(&m);
        run_chunks(d, &r[i], chunks, 8);
        inf_device_close(d);
        tiny_free(&m);
    }
    block_size = 4;
    double apart = 0;
    for (int t = 0; t < TEXT; t++) {
        apart = fmax(apart, fabs((double)r[0].rows[t].logprob - (double)r[1].rows[t].logprob));
    }
    CHECK(apart < tolerance && distance(&r[1], exact) > 2 * tolerance,
          "%g apart, off KV as it came by %g", apart, distance(&r[1], exact));
}

/* Prefill of one request beside decode of others changes nobody's result. */
static void test_batch(uint32_t flags) {
    static double want[TEXT][TINY_VOCAB];
    tiny_model m = tiny_new(flags, INF_DTYPE_F32);
    inf_device *d = tiny_open(&m);
    static request r[4];
    request *all[4];
    for (uint32_t i = 0; i < 4; i++) {
        r[i] = new_request(i);
        tiny_slot(d, i);
        all[i] = &r[i];
    }
    uint64_t seed = 3;
    for (;;) {
        request *chosen[4];
        uint32_t n[4], count = 0, left = 64;
        for (uint32_t i = 0; i < 4; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            uint32_t want_n = 1 + (uint32_t)(seed >> 60) % (i == 2 ? 15 : 3);
            uint32_t rest = TEXT - all[i]->done;
            n[count] = want_n < rest ? want_n : rest;
            if (n[count] > 0 && n[count] <= left) {
                left -= n[count];
                chosen[count++] = all[i];
            }
        }
        if (count == 0) {
            break;
        }
        advance(d, chosen, n, count);
    }
    for (uint32_t i = 0; i < 4; i++) {
        tiny_reference(&m, r[i].tokens, TEXT, want);
        CHECK(distance(&r[i], want) < 1e-4, "request %u: off by %g", i, distance(&r[i], want));
    }
    inf_device_close(d);
    tiny_free(&m);
}

/* Greedy decode: sampled rows continue the text as the reference's argmax does. */
static void test_sampled(void) {
    static double want[TEXT][TINY_VOCAB];
    tiny_model m = tiny_new(INF_MODEL_TIED, INF_DTYPE_F32);
    inf_device *d = tiny_open(&m);
    request r = new_request(1);
    tiny_slot(d, 1);
    inf_step_buffers b;
    inf_err err = {0};
    CHECK(inf_device_buffers(d, &b, &err) == INF_OK, "%s", err.message);
    uint32_t n = 5;
    while (r.done + n < TEXT) {
        *b.head = (inf_step_head){.n_seqs = 1, .n_tokens = n, .n_blocks = BLOCKS, .n_rows = 1};
        b.seqs[0] = (inf_step_seq){.slot = 1, .n_tokens = n, .pos0 = r.done, .n_blocks = BLOCKS};
        memcpy(b.tokens, r.tokens + r.done, n * sizeof(int32_t));
        memcpy(b.blocks, r.blocks, sizeof(r.blocks));
        b.rows[0] = (inf_step_row){n - 1, 0, -1, 0, 0};
        CHECK(inf_device_submit(d, &err) == INF_OK, "%s", err.message);
        while (inf_device_wait(d, 1000, &err) == INF_AGAIN) {
        }
        r.done += n;
        n = 1;
        tiny_reference(&m, r.tokens, (int)r.done, want);
        const double *last = want[r.done - 1];
        int best = 0;
        for (int v = 1; v < TINY_VOCAB; v++) {
            best = last[v] > last[best] ? v : best;
        }
        CHECK(b.row_out[0].token == best && b.row_out[0].rank == 1, "%d for %d", b.row_out[0].token,
              best);
        CHECK(fabs((double)b.row_out[0].logprob - last[best]) < 1e-4, "%g",
              (double)b.row_out[0].logprob);
        r.tokens[r.done] = best;
    }
    inf_device_close(d);
    tiny_free(&m);
}

/* Masks in steps of two requests, of which one has none: on a GPU the later ones are replayed, with
 * another mask each time. */
static void test_masked(void) {
    tiny_model m = tiny_new(0, INF_DTYPE_F32);
    inf_device *d = tiny_open(&m);
    request r[] = {new_request(0), new_request(1)};
    inf_step_buffers b;
    inf_err err = {0};
    CHECK(inf_device_buffers(d, &b, &err) == INF_OK, "%s", err.message);
    tiny_slot(d, 0);
    tiny_slot(d, 1);
    for (uint32_t t = 0; t < 12; t++) {
        *b.head = (inf_step_head){.n_seqs = 2, .n_tokens = 2, .n_blocks = 2 * BLOCKS, .n_rows = 2};
        b.head->flags = t == 11 ? INF_STEP_NO_MASKS : 0;
        int32_t only = (int32_t)(t * 37 + 5) % TINY_VOCAB;
        for (uint32_t i = 0; i < 2; i++) {
            b.seqs[i] = (inf_step_seq){.slot = i,
                                       .token_off = i,
                                       .n_tokens = 1,
                                       .pos0 = t,
                                       .block_off = i * BLOCKS,
                                       .n_blocks = BLOCKS};
            b.tokens[i] = r[i].tokens[t];
            memcpy(b.blocks + (size_t)i * BLOCKS, r[i].blocks, sizeof r[i].blocks);
            b.rows[i] = (inf_step_row){i, i, -1, 0, i == t % 2 ? 3 : 0};
        }
        memset(b.masks, 0, 4 * sizeof *b.masks * 2);
        b.masks[2 * 2 + only / 32] = 1u << (only % 32);
        CHECK(inf_device_submit(d, &err) == INF_OK, "%s", err.message);
        CHECK(inf_device_wait(d, -1, &err) == INF_OK, "%s", err.message);
        const inf_row_out *masked = &b.row_out[t % 2], *other = &b.row_out[1 - t % 2];
        CHECK(t == 11 || masked->token == only, "step %u: token %d, not %d", t, masked->token,
              only);
        CHECK(t != 11 || masked->rank == 1, "step %u has no masks: rank %d", t, masked->rank);
        CHECK(other->rank == 1, "step %u: the other request's token has rank %d", t, other->rank);
    }
    inf_device_close(d);
    tiny_free(&m);
}

/* A prefix whose blocks two requests read, each writing its own tail. */
static void test_shared_prefix(void) {
    static double want[TEXT][TINY_VOCAB];
    tiny_model m = tiny_new(0, INF_DTYPE_F32);
    inf_device *d = tiny_open(&m);
    request a = new_request(0), c = new_request(1);
    memcpy(c.tokens, a.tokens, 16 * sizeof(int32_t));
    memcpy(c.blocks, a.blocks, 4 * sizeof(int32_t));
    const uint32_t prefix = 16, rest[] = {29, 29};
    request *one = &a, *both[] = {&a, &c};
    tiny_slot(d, 0);
    tiny_slot(d, 1);
    advance(d, &one, &prefix, 1);
    memcpy(c.rows, a.rows, sizeof(a.rows));
    c.done = 16;
    advance(d, both, rest, 2);
    tiny_reference(&m, a.tokens, TEXT, want);
    CHECK(distance(&a, want) < 1e-4, "off by %g", distance(&a, want));
    tiny_reference(&m, c.tokens, TEXT, want);
    for (int t = 16; t < TEXT; t++) {
        const inf_row_out *o = &c.rows[t];
        CHECK(fabs((double)o->logprob - want[t][o->token]) < 1e-4, "token %d", t);
    }
    inf_device_close(d);
    tiny_free(&m);
}

/* A NaN in the weights voids the rows of requests, and the device lives on. */
static void test_not_a_number(void) {
    tiny_model m = tiny_new(0, INF_DTYPE_F32);
    m.tensors[0][INF_ROLE_EMBED][9 * m.config.hidden] = NAN;
    inf_device *d = tiny_open(&m);
    inf_step_buffers b;
    inf_err err = {0};
    CHECK(inf_device_buffers(d, &b, &err) == INF_OK, "%s", err.message);
    tiny_slot(d, 0);
    tiny_slot(d, 1);
    *b.head = (inf_step_head){.n_seqs = 2, .n_tokens = 2, .n_blocks = 2, .n_rows = 2};
    for (uint32_t i = 0; i < 2; i++) {
        b.seqs[i] =
            (inf_step_seq){.slot = i, .token_off = i, .n_tokens = 1, .block_off = i, .n_blocks = 1};
        b.tokens[i] = i == 0 ? 9 : 3;
        b.blocks[i] = (int32_t)i;
        b.rows[i] = (inf_step_row){i, i, -1, 0, 0};
    }
    CHECK(inf_device_submit(d, &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_wait(d, -1, &err) == INF_OK, "%s", err.message);
    CHECK(b.seq_out[0].status == INF_ENOTFINITE && b.seq_out[0].peer == -1, "%d",
          b.seq_out[0].status);
    CHECK(b.row_out[0].token == -1, "%d", b.row_out[0].token);
    CHECK(b.seq_out[1].status == INF_OK && b.row_out[1].token >= 0, "%d", b.seq_out[1].status);
    inf_device_close(d);
    tiny_free(&m);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "few") == 0) { /* of most kinds of steps some */
        test_chunks(INF_MODEL_QKV_BIAS, INF_DTYPE_F32, 0, 1e-4);
        test_chunks(TINY_EXPERTS, INF_DTYPE_BF16, 0, 0.15);
        test_e4m3(0, 0, 0.02);
        test_batch(TINY_GEMMA_3);
        test_sampled();
        test_masked();
        test_shared_prefix();
        test_not_a_number();
        puts("step, a few: ok");
        return 0;
    }
    /* To a GPU they are all the same; twice, since products of few rows go either of two ways. */
    int32_t last = getenv("INFINITE_TEST_GPU") != NULL ? 1 : 4;
    int whole = getenv("INFINITE_TEST_TP") == NULL;
    const uint32_t flags[] = {0, INF_MODEL_QKV_BIAS, INF_MODEL_QK_NORM, INF_MODEL_TIED,
                              INF_MODEL_QKV_BIAS | INF_MODEL_QK_NORM | INF_MODEL_TIED};
    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
        for (int32_t isa = 0; isa <= last; isa++) {
            test_chunks(flags[i], INF_DTYPE_F32, isa, 1e-4);
        }
    }
    for (int32_t isa = 0; isa <= last; isa++) {
        test_chunks(INF_MODEL_QKV_BIAS, INF_DTYPE_BF16, isa, 0.08);
    }
    for (int32_t isa = 0; isa <= last; isa++) { /* experts in the first layer, and an MLP */
        test_chunks(TINY_EXPERTS, INF_DTYPE_F32, isa, 1e-4);
        test_chunks(TINY_EXPERTS | TINY_SHARED | INF_MODEL_QKV_BIAS, INF_DTYPE_F32, isa, 1e-4);
        test_chunks(TINY_EXPERTS, INF_DTYPE_BF16, isa, 0.15);
        test_chunks(TINY_EXPERTS | TINY_SHARED, INF_DTYPE_BF16, isa, 0.15);
    }
    const uint32_t families[] = {TINY_GEMMA_3, TINY_OLMO_2,
                                 TINY_PARTLY | TINY_GEMMA_2 | INF_MODEL_QKV_BIAS};
    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++) {
        if (families[i] == TINY_OLMO_2 && !whole) {
            continue; /* a norm over all heads is not cut */
        }
        for (int32_t isa = 0; isa <= last; isa++) {
            test_chunks(families[i], INF_DTYPE_F32, isa, 1e-4);
            test_chunks(families[i], INF_DTYPE_BF16, isa, 0.15);
        }
    }
    for (int32_t isa = 0; isa <= (last < 3 ? last : 3); isa++) {
        test_e4m3(0, isa, 0.02);
        test_e4m3(INF_MODEL_QKV_BIAS | INF_MODEL_QK_NORM, isa, 0.02);
    }
    if (getenv("INFINITE_TEST_GPU") != NULL) {
        test_e4m3_products(0.1);
    }
    test_batch(INF_MODEL_QKV_BIAS);
    test_batch(TINY_EXPERTS | TINY_SHARED);
    test_batch(TINY_GEMMA_3);
    if (whole) {
        test_batch(TINY_OLMO_2);
    }
    test_sampled();
    test_masked();
    test_shared_prefix();
    test_not_a_number();
    puts("step: ok");
    return 0;
}
