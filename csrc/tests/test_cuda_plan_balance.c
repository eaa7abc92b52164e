/* What plans for the GPU are worth: that steps of many shapes occupy it evenly. */
#include "tests/plan_check.h"

/* What a plan is worth: load of the busiest slot over the mean, blocks being started in the list's
 * order where one ends. */
static double imbalance(const step *s, const inf_cuda_work *work, int32_t n, int class,
                        int32_t slots) {
    double *busy = get_bytes((size_t)slots * sizeof *busy), all = 0, most = 0;
    memset(busy, 0, (size_t)slots * sizeof *busy);
    for (int32_t i = 0; i < n; i++) {
        int32_t rows = (int32_t)work[i].rows * (s->shape.heads / s->shape.kv_heads);
        int32_t blocks = class == DECODE ? 1 : (rows + 127) / 128;
        for (int32_t b = 0; b < blocks * s->shape.kv_heads; b++) {
            int32_t least = 0;
            for (int32_t k = 1; k < slots; k++)
                least = busy[k] < busy[least] ? k : least;
            busy[least] += work[i].tokens;
            all += work[i].tokens;
            most = busy[least] > most ? busy[least] : most;
        }
    }
    free(busy);
    return all > 0 ? most / (all / slots) : 0;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* pieces: of decode, 0 for any. */
static void test_shape(const char *name, const step *s, double limit, int32_t pieces) {
    planned p;
    CHECK(inf_cuda_plan_capacity(&s->shape, &s->limits, &p.sizes) == INF_OK, "no capacity");
    give_lists(&p);
    double best = 1e9;
    for (int32_t i = 0; i < 50; i++) {
        double start = now();
        CHECK(inf_cuda_plan(&s->shape, s->segments, s->n, s->rows, &p.sizes, &p.lists) == INF_OK,
              "no plan");
        double took = now() - start;
        best = took < best ? took : best;
    }
    double decode =
        imbalance(s, p.lists.decode, p.lists.n_decode, DECODE, 132); /* one block per SM */
    double prefill = imbalance(s, p.lists.prefill, p.lists.n_prefill, PREFILL, 132 * 2);
    printf("%-28s decode %4d pieces up to %6u tokens, busiest slot %.2f of mean; prefill %4d up to "
           "%6u, %.2f; parts %5u; %.1f us\n",
           name, p.lists.n_decode, p.lists.n_decode > 0 ? p.lists.decode[0].tokens : 0, decode,
           p.lists.n_prefill, p.lists.n_prefill > 0 ? p.lists.prefill[0].tokens : 0, prefill,
           p.lists.n_parts, 1e6 * best);
    CHECK(pieces == 0 || p.lists.n_decode == pieces, "%s: %d pieces", name, p.lists.n_decode);
    CHECK(p.lists.n_decode == 0 || decode < limit, "%s: busiest slot %.2f of mean", name, decode);
    CHECK(p.lists.n_prefill == 0 || prefill < limit, "%s: busiest slot %.2f of mean", name,
          prefill);
    check_plan(s, &p);
    drop_lists(&p);
}

static void add_request(step *s, uint32_t rows, uint32_t context) {
    s->segments[s->n++] =
        (inf_cuda_segment){(uint32_t)s->rows, rows, context - rows, 0, context, 0};
    s->rows += (int32_t)rows;
}

static void test_shapes(void) {
    static const uint32_t contexts[] = {1 << 10, 1 << 13, 1 << 15, 1 << 17, 1 << 20};
    static const int32_t batches[] = {1, 5, 8, 34, 64};
    /* Which cut was the fastest on an H200. */
    static const int32_t pieces[5][5] = {
        {16, 16, 16, 16, 16}, {0}, {8, 16, 16, 16, 16}, {0}, {64, 64, 64, 64, 64}};
    static step s;
    char name[64];
    for (size_t b = 0; b < 5; b++)
        for (size_t c = 0; c < 5; c++) {
            memset(&s, 0, sizeof s);
            s.shape = (inf_cuda_plan_shape){.heads = 32, .kv_heads = 8, .sms = 132};
            for (int32_t i = 0; i < batches[b]; i++)
                add_request(&s, 1, contexts[c]);
            fill_limits(&s);
            snprintf(name, sizeof name, "decode %d x %u", batches[b], contexts[c]);
            /* Some thousand tokens cannot occupy the GPU evenly, or not worth a merge. */
            test_shape(name, &s, batches[b] * contexts[c] <= 34 << 10 ? 100.0 : 1.3, pieces[b][c]);
        }
    memset(&s, 0, sizeof s);
    s.shape = (inf_cuda_plan_shape){.heads = 32, .kv_heads = 8, .sms = 132};
    for (int32_t i = 0; i < 64; i++)
        add_request(&s, 1, i == 9 ? 1u << 20 : 1024u << below(6));
    fill_limits(&s);
    test_shape("decode, 63 short and 1M", &s, 1.15, 0);
    static const uint32_t prefills[][2] = {{128, 128},     {512, 512},     {512, 1 << 20},
                                           {128, 1 << 17}, {640, 1 << 15}, {2048, 2048},
                                           {8192, 8192},   {8, 1 << 15},   {40, 1 << 17}};
    for (size_t i = 0; i < 9; i++) {
        memset(&s, 0, sizeof s);
        s.shape = (inf_cuda_plan_shape){.heads = 32, .kv_heads = 8, .sms = 132};
        add_request(&s, prefills[i][0], prefills[i][1]);
        fill_limits(&s);
        snprintf(name, sizeof name, "prefill %u of %u", prefills[i][0], prefills[i][1]);
        test_shape(name, &s, prefills[i][1] < 4096 ? 100.0 : 1.25, 0);
    }
}

int main(int argc, char **argv) {
    start(argc, argv);
    test_shapes();
    return report("cuda_plan_balance");
}
