/* A step with matrices of few bits: what the plain forward pass gives with weights that are rounded
 * so, and near what it gives with those that came. */
#include "runtime/runtime.h"
#include "tests/tiny_model.h"

#include "tests/few_bits.h"

enum { TEXT = 40, BLOCK_SIZE = 4, BLOCKS = TEXT / BLOCK_SIZE };

/* A matrix of the plain model as the device rounds it. */
static void narrow(tiny_model *m, int32_t role, int32_t dtype) {
    int layers = role < INF_ROLE_ATTN_NORM ? 1 : m->config.layers;
    int each = role >= INF_ROLE_EXPERT_GATE && role <= INF_ROLE_EXPERT_DOWN;
    int32_t rows = (int32_t)m->rows[role] * (each ? m->config.experts : 1);
    int32_t cols = (int32_t)m->cols[role];
    double *w = malloc((size_t)rows * (size_t)cols * sizeof *w);
    for (int l = 0; l < layers; l++) {
        float *tensor = m->tensors[l][role];
        for (int64_t i = 0; tensor != NULL && i < (int64_t)rows * cols; i++) {
            w[i] = (double)tensor[i];
        }
        if (tensor != NULL) {
            narrow_weights(w, rows, cols, role == INF_ROLE_LM_HEAD ? INF_DTYPE_I8 : dtype);
        }
        for (int64_t i = 0; tensor != NULL && i < (int64_t)rows * cols; i++) {
            tensor[i] = (float)w[i];
        }
    }
    free(w);
}

/* Log probabilities of the text, in steps of 16, 1, 16, 1, .. tokens. */
static void run(const tiny_model *m, const int32_t *tokens, double *logprobs) {
    inf_device *d = tiny_open(m);
    inf_step_buffers b;
    inf_err err = {0};
    CHECK(inf_device_buffers(d, &b, &err) == INF_OK, "%s", err.message);
    tiny_slot(d, 0);
    uint32_t n = 16;
    for (uint32_t done = 0; done < TEXT; done += n, n = n == 16 ? 1 : 16) {
        n = n < TEXT - done ? n : TEXT - done;
        *b.head = (inf_step_head){.n_seqs = 1, .n_tokens = n, .n_blocks = BLOCKS, .n_rows = n};
        b.seqs[0] = (inf_step_seq){.n_tokens = n, .pos0 = done, .n_blocks = BLOCKS};
        memcpy(b.tokens, tokens + done, n * sizeof *tokens);
        for (int32_t i = 0; i < BLOCKS; i++) {
            b.blocks[i] = i;
        }
        for (uint32_t i = 0; i < n; i++) {
            int32_t next = done + i + 1 < TEXT ? tokens[done + i + 1] : 0;
            b.rows[i] = (inf_step_row){i, 0, next, 0, 0};
        }
        CHECK(inf_device_submit(d, &err) == INF_OK, "%s", err.message);
        CHECK(inf_device_wait(d, -1, &err) == INF_OK, "%s", err.message);
        for (uint32_t i = 0; i < n; i++) {
            logprobs[done + i] = (double)b.row_out[i].logprob;
        }
    }
    inf_device_close(d);
}

static double apart(const double *got, double want[][TINY_VOCAB], const int32_t *tokens) {
    double worst = 0;
    for (int t = 0; t < TEXT; t++) {
        int32_t next = t + 1 < TEXT ? tokens[t + 1] : 0;
        worst = fmax(worst, fabs(got[t] - want[t][next]));
    }
    return worst;
}

/* off: what rounded inputs make of log probabilities; most: what rounded weights do. */
static void test_model(uint32_t flags, int32_t dtype, int32_t isa, double tolerance, double most) {
    static double exact[TEXT][TINY_VOCAB], want[TEXT][TINY_VOCAB], got[TEXT];
    tiny_model m = tiny_new(flags, INF_DTYPE_F32);
    int32_t tokens[TEXT];
    for (int i = 0; i < TEXT; i++) {
        tokens[i] = (i * 29 + i * i) % TINY_VOCAB;
    }
    tiny_reference(&m, tokens, TEXT, exact);
    m.config.matrix_dtype = dtype;
    m.config.isa = isa;
    if (!tiny_is_supported(&m)) {
        tiny_free(&m);
        return;
    }
    run(&m, tokens, got);
    const int32_t matrices[] = {INF_ROLE_LM_HEAD,   INF_ROLE_Q,           INF_ROLE_K,
                                INF_ROLE_V,         INF_ROLE_O,           INF_ROLE_GATE,
                                INF_ROLE_UP,        INF_ROLE_DOWN,        INF_ROLE_EXPERT_GATE,
                                INF_ROLE_EXPERT_UP, INF_ROLE_EXPERT_DOWN, INF_ROLE_SHARED_GATE,
                                INF_ROLE_SHARED_UP, INF_ROLE_SHARED_DOWN}; /* not the router */
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        narrow(&m, matrices[i], dtype);
    }
    tiny_reference(&m, tokens, TEXT, want);
    double off = apart(got, want, tokens), from_exact = apart(got, exact, tokens);
    CHECK(off < tolerance && from_exact > 2 * tolerance && from_exact < most,
          "flags %u, dtype %d, isa %d: off by %g, and by %g from the weights that came", flags,
          dtype, isa, off, from_exact);
    tiny_free(&m);
}

static void refused(int32_t matrix_dtype, int32_t gpu) {
    tiny_model m = tiny_new(0, INF_DTYPE_F32);
    m.config.matrix_dtype = matrix_dtype;
    m.config.gpu = gpu;
    inf_device *d = NULL;
    inf_err err = {0};
    CHECK(inf_device_open(&m.config, m.inv_freq, m.windows, &d, &err) == INF_EINVAL,
          "matrices of dtype %d on gpu %d: %s", matrix_dtype, gpu, err.message);
    tiny_free(&m);
}

/* Over ranks, groups must be those of one rank. */
static void cut(int32_t dtype, int32_t head_dim, int32_t intermediate, int32_t experts,
                int32_t ranks, int expected) {
    tiny_model m = tiny_new(0, INF_DTYPE_F32);
    m.config.matrix_dtype = dtype;
    m.config.heads = 4, m.config.kv_heads = 2, m.config.head_dim = head_dim;
    m.config.intermediate = intermediate;
    m.config.experts = m.config.experts_per_token = 1;
    m.config.expert_intermediate = experts;
    m.config.tensor_parallel = ranks;
    inf_err err = {0};
    CHECK(inf_check_config(&m.config, &err) == expected, "%d heads of %d, %d, over %d ranks: %s", 4,
          head_dim, intermediate, ranks, err.message);
    tiny_free(&m);
}

/* What tensors may come in 4 bits, how long they are, and what they may stand beside. */
static void test_tensors(void) {
    static const uint8_t zeros[1 << 16];
    tiny_model m = tiny_new(TINY_EXPERTS, INF_DTYPE_BF16);
    inf_device *d = NULL;
    inf_err err = {0};
    CHECK(inf_device_open(&m.config, m.inv_freq, m.windows, &d, &err) == INF_OK, "%s", err.message);
    const struct {
        int32_t role, layer, expert, dtype, longer, expected;
        const char *says;
    } cases[] = {
        {INF_ROLE_EMBED, -1, -1, INF_DTYPE_I4_32, 0, INF_EINVAL, "must be"},
        {INF_ROLE_ATTN_NORM, 0, -1, INF_DTYPE_I4_32, 0, INF_EINVAL, "must be"},
        {INF_ROLE_ROUTER, 0, -1, INF_DTYPE_I4_32, 0, INF_EINVAL, "must be"},
        {INF_ROLE_Q, 1, -1, INF_DTYPE_I8, 0, INF_EINVAL, "must be"},
        {INF_ROLE_Q, 1, -1, INF_DTYPE_I4_128, 0, INF_EINVAL, "must be"}, /* of 64 inputs */
        {INF_ROLE_Q, 1, -1, INF_DTYPE_I4_32, 1, INF_EINVAL, "bytes do not match"},
        {INF_ROLE_Q, 1, -1, INF_DTYPE_I4_32, -1, INF_EINVAL, "bytes do not match"},
        {INF_ROLE_Q, 1, -1, INF_DTYPE_I4_32, 0, INF_OK, ""},
        {INF_ROLE_K, 1, -1, INF_DTYPE_BF16, 0, INF_EINVAL, "another dtype"},
        {INF_ROLE_K, 1, -1, INF_DTYPE_I4_64, 0, INF_EINVAL, "another dtype"},
        {INF_ROLE_K, 1, -1, INF_DTYPE_I4_32, 0, INF_OK, ""},
        {INF_ROLE_V, 1, -1, INF_DTYPE_I4_32, 0, INF_OK, ""},
        {INF_ROLE_DOWN, 1, -1, INF_DTYPE_I4_128, 0, INF_OK, ""},
        {INF_ROLE_EXPERT_DOWN, 0, 2, INF_DTYPE_I4_64, 0, INF_OK, ""},
        {INF_ROLE_EXPERT_DOWN, 0, 3, INF_DTYPE_I4_32, 0, INF_EINVAL, "another dtype"},
        {INF_ROLE_EXPERT_UP, 0, 2, INF_DTYPE_BF16, 0, INF_EINVAL, "another dtype"},
        {INF_ROLE_EXPERT_UP, 0, 2, INF_DTYPE_I4_64, 0, INF_OK, ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t rows = m.rows[cases[i].role], cols = m.cols[cases[i].role];
        int32_t group = cases[i].dtype == INF_DTYPE_I8 || cases[i].dtype == INF_DTYPE_BF16
                            ? 0
                            : group_of(cases[i].dtype);
        int64_t row = group > 0 ? cols / group * (4 + group / 2) : cols * 2;
        err.message[0] = 0;
        int status = inf_device_load_expert(d, cases[i].role, cases[i].layer, cases[i].expert,
                                            cases[i].dtype, rows, cols, zeros,
                                            (uint64_t)(rows * row + cases[i].longer), &err);
        CHECK(status == cases[i].expected && strstr(err.message, cases[i].says) != NULL,
              "case %zu: %d, %s", i, status, err.message);
    }
    inf_device_close(d);
    tiny_free(&m);
}

int main(void) {
    test_tensors();
    cut(INF_DTYPE_I8, 64, 512, 256, 1, INF_OK);
    cut(INF_DTYPE_I8, 64, 512, 256, 2, INF_OK);
    cut(INF_DTYPE_I8, 64, 448, 200, 1, INF_OK);
    cut(INF_DTYPE_I8, 64, 448, 256, 2, INF_EUNSUPPORTED);
    cut(INF_DTYPE_I8, 32, 512, 256, 2, INF_EUNSUPPORTED);
    cut(INF_DTYPE_I8, 64, 512, 320, 2, INF_EUNSUPPORTED);
    cut(INF_DTYPE_I4_32, 16, 448, 320, 2, INF_OK);
    cut(INF_DTYPE_I4_32, 16, 416, 320, 4, INF_EUNSUPPORTED);
    const uint32_t flags[] = {0, INF_MODEL_QKV_BIAS | INF_MODEL_QK_NORM,
                              TINY_EXPERTS | TINY_SHARED};
    for (int32_t isa = 0; isa <= 4; isa++) {
        for (int i = 0; i < 3; i++) {
            test_model(flags[i], INF_DTYPE_I8, isa, 1e-3, 0.2);
            test_model(flags[i], INF_DTYPE_I4_32, isa, 1e-3, 2);
        }
    }
    refused(INF_DTYPE_I4_64, 1);
    refused(INF_DTYPE_I8, 1);
    refused(INF_DTYPE_BF16, 0);
    refused(INF_DTYPE_E4M3, 0);
    refused(-1, 0);
    puts("few bits: ok");
    return 0;
}
