/* Tensor parallelism: instances of 1, 2 and 4 ranks compute what the plain forward pass does, with
 * one kv head per rank and with several, in every format. Blocks have one layout outside of the
 * ranks, so instances that are cut differently attend over each other's KV. test_tp_ranks has the
 * ranks' parts. With INFINITE_TEST_GPU the ranks are GPUs. */
#define _GNU_SOURCE
#include "tests/tp_text.h"

#include "tests/link_ends.h"

enum { CHUNKS = 7, LENT = 16 }; /* LENT: tokens */
static const uint32_t chunks[CHUNKS] = {1, 7, 4, 13, 2, 5, 13};

static int on_gpu(void) { return getenv("INFINITE_TEST_GPU") != NULL; }

/* One step on a device, and how far its rows are from the reference. */
static double advance(inf_device *d, const int32_t *tokens, uint32_t done, uint32_t n,
                      const inf_step_span *span, uint32_t flags, double want[][TINY_VOCAB]) {
    inf_step_buffers b;
    inf_err err = {0};
    CHECK(inf_device_buffers(d, &b, &err) == INF_OK, "%s", err.message);
    fill_step(&b, tokens, done, n, span);
    b.head->flags = flags;
    CHECK(inf_device_submit(d, &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_wait(d, -1, &err) == INF_OK, "%s", err.message);
    CHECK(b.seq_out[0].status == INF_OK, "%d", b.seq_out[0].status);
    return distance(b.row_out, n, want + done);
}

/* ---- whole steps ---- */

static void test_steps(uint32_t flags, int32_t dtype, int32_t heads, int32_t kv_heads, int32_t n,
                       double tolerance) {
    static double want[TEXT][TINY_VOCAB];
    int32_t tokens[TEXT];
    tiny_model m = tiny_new_of(flags, dtype, heads, kv_heads);
    m.config.tensor_parallel = n;
    inf_device *d = tiny_open(&m);
    text_of(tokens, flags + 7);
    tiny_reference(&m, tokens, TEXT, want);
    tiny_slot(d, 0);
    double worst = 0;
    for (uint32_t i = 0, done = 0; i < CHUNKS; done += chunks[i++]) {
        worst = fmax(worst, advance(d, tokens, done, chunks[i], NULL, 0, want));
    }
    for (uint32_t done = 30; done < TEXT; done++) { /* again, token by token */
        worst = fmax(worst, advance(d, tokens, done, 1, NULL, 0, want));
    }
    CHECK(worst < tolerance, "%d ranks, %d heads on %d, flags %u, dtype %d: off by %g", n, heads,
          kv_heads, flags, dtype, worst);
    inf_device_close(d);
    tiny_free(&m);
}

/* ---- DistAttention between instances that are cut differently ---- */

/* debtor knows creditor as peer 1, creditor knows debtor as peer 2. */
static void join(uint32_t via, const tiny_model *m, inf_device *debtor, inf_device *creditor) {
    uint64_t bytes[2] = {inf_device_query_slot_bytes(&m->config),
                         inf_device_move_slot_bytes(&m->config)};
    inf_link *client[2], *server[2];
    inf_err err = {0};
    for (int i = 0; i < 2; i++) {
        link_ends e = make_ends(via, INF_QUERY_SLOTS, bytes[i]);
        open_ends(&e, &client[i], &server[i]);
    }
    CHECK(inf_device_peer_serve(creditor, 2, server[0], server[1], &err) == INF_OK, "%s",
          err.message);
    CHECK(inf_device_peer_attach(debtor, 1, client[0], client[1], &err) == INF_OK, "%s",
          err.message);
}

static void test_lent(uint32_t via, int32_t dtype, int32_t home_ranks, int32_t host_ranks,
                      double tolerance) {
    static double want[TEXT][TINY_VOCAB];
    int32_t tokens[TEXT], mine[LENT], theirs[LENT], lent = LENT / (int32_t)block;
    inf_err err = {0};
    /* Blocks of 8 tokens and heads of 64 are what GPUs' kernels for decode take. */
    tiny_model m = block == 8 ? tiny_new_with(INF_MODEL_QK_NORM, dtype, 2, 1, 64, 8)
                              : tiny_new_of(INF_MODEL_QK_NORM, dtype, 8, 4);
    m.config.tensor_parallel = home_ranks;
    inf_device *home = tiny_open(&m);
    m.config.tensor_parallel = host_ranks;
    inf_device *host = tiny_open(&m);
    join(via, &m, home, host);
    text_of(tokens, 11);
    tiny_reference(&m, tokens, TEXT, want);
    tiny_slot(home, 0);
    double worst = advance(home, tokens, 0, 20, NULL, 0, want);
    for (int32_t i = 0; i < lent; i++) {
        mine[i] = i * 5 % 64;
        theirs[i] = 40 - 3 * i;
    }
    CHECK(inf_device_span_set(host, 2, 5, 3, theirs, lent, &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_move_post(home, 1, 5, 3, 0, mine, lent, 77, &err) == INF_OK, "%s",
          err.message);
    inf_move_done done;
    CHECK(inf_device_move_wait(home, INT64_C(60000000000), &done, &err) == INF_OK, "%s",
          err.message);
    CHECK(done.ticket == 77 && done.status == INF_OK, "%d", done.status);
    inf_step_span span = {.peer = 1, .handle = 5, .generation = 3, .n_tokens = LENT};
    worst = fmax(worst, advance(home, tokens, 20, 13, &span, 0, want));
    double empty = advance(home, tokens, 33, 1, &span, INF_STEP_EMPTY_REMOTE, want);
    for (uint32_t t = 33; t < TEXT; t++) {
        if (t > 37) {                   /* what it did last is not always what it replays next */
            uint32_t n = t % 2 ? 1 : 3; /* recorded, or not */
            worst = fmax(worst, advance(home, tokens, t - n, n, NULL, 0, want));
        }
        double once = advance(home, tokens, t, 1, &span, 0, want);
        double again = advance(home, tokens, t, 1, &span, 0, want);
        CHECK(once == again, "off by %g, and then by %g", once, again);
        worst = fmax(worst, once);
    }
    CHECK(worst < tolerance, "home of %d ranks, host of %d, dtype %d: off by %g", home_ranks,
          host_ranks, dtype, worst);
    CHECK(empty > tolerance, "without the partials it is off by %g only", empty);
    inf_device_stats s;
    CHECK(inf_device_stats_read(host, &s) == INF_OK && s.served_rows > 0 && s.refused_messages == 0,
          "%llu refused", (unsigned long long)s.refused_messages);
    inf_device_close(home);
    inf_device_close(host);
    tiny_free(&m);
}

/* ---- what cannot be ---- */

static void refused(tiny_model *m, int32_t ranks, int status, const char *text) {
    inf_device *d = NULL;
    inf_err err = {0};
    m->config.tensor_parallel = ranks;
    CHECK(inf_device_open(&m->config, m->inv_freq, m->windows, &d, &err) == status && d == NULL,
          "%d ranks: %s", ranks, err.message);
    CHECK(strstr(err.message, text) != NULL, "%s", err.message);
}

static void test_refusals(void) {
    tiny_model m = tiny_new(0, INF_DTYPE_F32);
    refused(&m, 4, INF_EUNSUPPORTED, "cannot cut 2 kv heads over 4 ranks");
    refused(&m, 3, INF_EINVAL, "cannot cut 4 heads and an intermediate size of 80 over 3 ranks");
    refused(&m, -1, INF_EINVAL, "tensor_parallel must be");
    refused(&m, 9, INF_EINVAL, "tensor_parallel must be");
    m.config.intermediate = 81;
    refused(&m, 2, INF_EINVAL, "an intermediate size of 81");
    m.config.intermediate = 80;
    m.config.experts = m.config.experts_per_token = 1, m.config.expert_intermediate = 5;
    refused(&m, 2, INF_EINVAL, "an intermediate size of 5 of experts over 2 ranks");
    m.config.expert_intermediate = 6, m.config.shared_intermediate = 7;
    refused(&m, 2, INF_EINVAL, "an intermediate size of 7 of the shared expert");
    tiny_free(&m);
}

int main(int argc, char **argv) {
    const struct {
        int32_t dtype;
        double tolerance;
    } formats[] = {{INF_DTYPE_F32, 1e-4}, {INF_DTYPE_BF16, 0.2}, {INF_DTYPE_F16, 0.03}};
    /* lent: only homes that record, for a run in which recordings come to nothing. */
    for (int f = 0; f < (on_gpu() ? 3 : 2); f++) {
        for (block = 4; block <= 8; block *= 2) {
            test_lent(INF_PROVIDER_SHM, formats[f].dtype, 1, 1, 2 * formats[f].tolerance);
        }
        block = 4;
    }
    if (argc > 1 && strcmp(argv[1], "lent") == 0) {
        puts("tensor parallelism, lent: ok");
        return 0;
    }
    const uint32_t flags[] = {0, INF_MODEL_QKV_BIAS | INF_MODEL_TIED, INF_MODEL_QK_NORM,
                              TINY_EXPERTS, TINY_EXPERTS | TINY_SHARED};
    for (int f = 0; f < (on_gpu() ? 3 : 2); f++) {
        for (int i = 0; i < 5; i++) {
            test_steps(flags[i], formats[f].dtype, 4, 2, 2, formats[f].tolerance);
            for (int32_t n = 1; n <= 4; n *= 2) {
                test_steps(flags[i], formats[f].dtype, 8, 4, n, formats[f].tolerance);
            }
        }
        test_steps(0, formats[f].dtype, 4, 4, 4, formats[f].tolerance); /* no groups */
        test_lent(INF_PROVIDER_SHM, formats[f].dtype, 2, 4, 2 * formats[f].tolerance);
    }
    const int32_t ranks[][2] = {{1, 2}, {2, 1}, {2, 2}, {4, 2}};
    for (int i = 0; i < 4; i++) {
        test_lent(i % 2 ? INF_PROVIDER_TCP : INF_PROVIDER_SHM, INF_DTYPE_F32, ranks[i][0],
                  ranks[i][1], 1e-4);
    }
    test_refusals();
    puts("tensor parallelism: ok");
    return 0;
}
