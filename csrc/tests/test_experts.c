/* The MLP of a layer with experts, in every table that this CPU has: the choice of experts, the
 * grouping of rows, and the whole operation against a naive double computation. */
#include "kernel_check.h"
#include "kernels/cpu/lane.h"

/* ---- the choice ---- */

/* By looking for the best of what is left, in double. */
static void check_route(int32_t rows, int32_t n, int32_t k, int normalise) {
    int32_t ld = n + 2, *chosen = get_bytes((size_t)rows * k * sizeof *chosen);
    float *logits = numbers((size_t)rows * ld), *weight = poisoned((size_t)rows * k);
    for (int32_t i = 0; i < rows * ld; i += 3)
        logits[i] = (float)below(3); /* many are equal */
    inf_cpu_route(logits, ld, rows, n, k, normalise, chosen, weight);
    for (int32_t r = 0; r < rows; r++) {
        const float *l = logits + (size_t)r * ld;
        int32_t *got = chosen + (size_t)r * k;
        double sum = 0, kept = 0;
        for (int32_t e = 0; e < n; e++)
            sum += exp((double)l[e]);
        for (int32_t i = 0; i < k; i++) {
            int32_t best = -1;
            for (int32_t e = 0; e < n; e++) {
                int taken = 0;
                for (int32_t j = 0; j < i; j++)
                    taken |= got[j] == e;
                best = !taken && (best < 0 || l[e] > l[best]) ? e : best;
            }
            CHECK(got[i] == best, "row %d of %d experts: %d, not %d", r, n, got[i], best);
            kept += exp((double)l[best]);
        }
        for (int32_t i = 0; i < k; i++) {
            double want = exp((double)l[got[i]]) / (normalise ? kept : sum);
            CHECK(near(weight[(size_t)r * k + i], want, 1e-6), "%d of %d: %g, not %g", k, n,
                  weight[(size_t)r * k + i], want);
        }
    }
    free(chosen);
    free(logits);
    free(weight);
}

/* Logits that are no numbers, or the largest: still so many experts, none twice, none that is not.
 */
static void test_odd_logits(void) {
    const float odd[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 0};
    for (int32_t i = 0; i < 500; i++) {
        float logits[7], weight[4];
        int32_t chosen[4] = {-1, -1, -1, -1}, seen[7] = {0};
        for (int32_t e = 0; e < 7; e++)
            logits[e] = odd[below(6)];
        inf_cpu_route(logits, 7, 1, 7, 4, i % 2, chosen, weight);
        for (int32_t j = 0; j < 4; j++)
            CHECK(chosen[j] >= 0 && chosen[j] < 7 && seen[chosen[j]]++ == 0, "expert %d",
                  chosen[j]);
    }
    float logits[] = {200, 100, -100}, weight[2];
    int32_t chosen[2];
    inf_cpu_route(logits, 3, 1, 3, 2, 0, chosen, weight);
    CHECK(weight[0] == 1 && weight[1] >= 0 && weight[1] < 1e-30f, "%g %g", weight[0], weight[1]);
}

static void test_group(void) {
    for (int32_t n = 1; n <= 40; n += 13)
        for (int32_t count = 0; count <= 200; count += 67) {
            int32_t chosen[256], place[256], first[64], at[256];
            for (int32_t i = 0; i < count; i++)
                chosen[i] = below(n);
            inf_cpu_group(chosen, count, n, first, place);
            CHECK(first[0] == 0 && first[n] == count, "%d to %d", first[0], first[n]);
            for (int32_t i = 0; i < count; i++)
                at[place[i]] = i;
            for (int32_t e = 0; e < n; e++)
                for (int32_t p = first[e]; p < first[e + 1]; p++)
                    CHECK(chosen[at[p]] == e && (p == first[e] || at[p] > at[p - 1]),
                          "place %d of expert %d is of %d", p, e, at[p]);
        }
}

/* ---- the operation ---- */

enum { ROWS = 33, EXPERTS = 7, TOP_K = 3 };

typedef struct world {
    inf_device_config d;
    inf_backend *backend;
    inf_lane *lane;
    /* as they are multiplied: what rounding leaves */
    float *router, *gate_up[EXPERTS], *down[EXPERTS], *shared_gate_up, *shared_down;
    float *x;
    void *matrix[2 * EXPERTS + 3];
    int32_t n;
    inf_experts args;
} world;

/* A matrix whose numbers every format has: multiples of 2^-9, of which one a group of 128 inputs is
 * 127 and none is larger. */
static float *weights(int32_t n, int32_t k) {
    float *w = get_bytes((size_t)n * k * sizeof *w);
    for (int32_t i = 0; i < n * k; i++)
        w[i] = (float)(i % k % 128 == 0 ? 127 : below(255) - 127) * 0x1p-9f;
    return w;
}

static void *matrix(world *w, float **numbers_of, int32_t dtype, int32_t n, int32_t k) {
    *numbers_of = weights(n, k);
    void *m =
        w->backend->ops->matrix(w->backend, dtype, *numbers_of, INF_DTYPE_F32, n, k, INF_CUT_NONE);
    w->matrix[w->n++] = m;
    return m;
}

static world open_world(int32_t isa, inf_pool *pool, int32_t dtype, int shared, int normalise) {
    world w = {.d = {.layers = 1,
                     .hidden = 150,
                     .intermediate = 1,
                     .heads = 1,
                     .kv_heads = 1,
                     .head_dim = 2,
                     .vocab = 1,
                     .model_flags = normalise ? INF_MODEL_NORM_TOPK : 0,
                     .dtype = dtype == INF_DTYPE_I8 ? INF_DTYPE_F32 : dtype,
                     .matrix_dtype = dtype == INF_DTYPE_I8 ? dtype : 0,
                     .experts = EXPERTS,
                     .experts_per_token = TOP_K,
                     .expert_intermediate = 37,
                     .shared_intermediate = shared ? 50 : 0}};
    const int32_t window = 0;
    const float freq = 1;
    inf_err err = {0};
    w.backend = inf_backend_cpu(isa);
    inf_lane_config config = {.kind = INF_LANE_STEP,
                              .device = &w.d,
                              .windows = &window,
                              .inv_freq = &freq,
                              .threads = pool,
                              .max_rows = ROWS,
                              .max_segments = 1};
    CHECK(w.backend->ops->lane_open(w.backend, &config, &w.lane, &err) == INF_OK, "%s",
          err.message);
    int32_t hidden = w.d.hidden, inner = w.d.expert_intermediate, si = w.d.shared_intermediate;
    void *gate_up[EXPERTS], *down[EXPERTS];
    w.args.router = matrix(&w, &w.router, INF_DTYPE_F32, EXPERTS + shared, hidden);
    for (int32_t e = 0; e < EXPERTS; e++) {
        gate_up[e] = matrix(&w, &w.gate_up[e], dtype, 2 * inner, hidden);
        down[e] = matrix(&w, &w.down[e], dtype, hidden, inner);
    }
    w.args.gate_up = w.backend->ops->list(w.backend, gate_up, EXPERTS);
    w.args.down = w.backend->ops->list(w.backend, down, EXPERTS);
    if (shared) {
        w.args.shared_gate_up = matrix(&w, &w.shared_gate_up, dtype, 2 * si, hidden);
        w.args.shared_down = matrix(&w, &w.shared_down, dtype, hidden, si);
    }
    w.x = numbers((size_t)ROWS * hidden);
    return w;
}

static void close_world(world *w) {
    for (int32_t i = 0; i < w->n; i++)
        w->backend->ops->free(w->backend, w->matrix[i]);
    w->backend->ops->free(w->backend, (void *)w->args.gate_up);
    w->backend->ops->free(w->backend, (void *)w->args.down);
    for (int32_t e = 0; e < EXPERTS; e++) {
        free(w->gate_up[e]);
        free(w->down[e]);
    }
    free(w->router);
    free(w->shared_gate_up);
    free(w->shared_down);
    free(w->x);
    w->backend->ops->lane_close(w->lane);
    w->backend->ops->close(w->backend);
}

static void mlp(const float *x, const float *gate_up, const float *down, int32_t inner,
                int32_t hidden, double factor, double *y) {
    double act[64];
    for (int32_t i = 0; i < inner; i++) {
        double gate = 0, up = 0;
        for (int32_t c = 0; c < hidden; c++) {
            gate += (double)x[c] * gate_up[(size_t)i * hidden + c];
            up += (double)x[c] * gate_up[((size_t)inner + i) * hidden + c];
        }
        act[i] = gate / (1 + exp(-gate)) * up;
    }
    for (int32_t c = 0; c < hidden; c++)
        for (int32_t i = 0; i < inner; i++)
            y[c] += factor * act[i] * down[(size_t)c * inner + i];
}

static void reference(const world *w, const float *x, double *y) {
    double p[EXPERTS + 1] = {0}, sum = 0, kept = 0;
    int32_t hidden = w->d.hidden, chosen[TOP_K], shared = w->d.shared_intermediate > 0;
    for (int32_t e = 0; e < EXPERTS + shared; e++)
        for (int32_t c = 0; c < hidden; c++)
            p[e] += (double)x[c] * w->router[(size_t)e * hidden + c];
    double shared_logit = p[EXPERTS];
    for (int32_t e = 0; e < EXPERTS; e++)
        sum += p[e] = exp(p[e]);
    for (int32_t i = 0; i < TOP_K; i++) {
        int32_t best = -1;
        for (int32_t e = 0; e < EXPERTS; e++) {
            int taken = 0;
            for (int32_t j = 0; j < i; j++)
                taken |= chosen[j] == e;
            best = !taken && (best < 0 || p[e] > p[best]) ? e : best;
        }
        chosen[i] = best;
        kept += p[best];
    }
    memset(y, 0, (size_t)hidden * sizeof *y);
    for (int32_t i = 0; i < TOP_K; i++)
        mlp(x, w->gate_up[chosen[i]], w->down[chosen[i]], w->d.expert_intermediate, hidden,
            p[chosen[i]] / (w->d.model_flags & INF_MODEL_NORM_TOPK ? kept : sum), y);
    if (shared)
        mlp(x, w->shared_gate_up, w->shared_down, w->d.shared_intermediate, hidden,
            1 / (1 + exp(-shared_logit)), y);
}

static void run(world *w, const float *x, float *y, int32_t rows) {
    w->args.x = x;
    w->args.y = y;
    w->args.rows = rows;
    w->backend->ops->experts(w->lane, &w->args);
}

static void check_experts(int32_t isa, inf_pool *pool, int32_t dtype, int shared, int normalise) {
    uint64_t state = seed_state;
    world w = open_world(isa, pool, dtype, shared, normalise);
    int32_t hidden = w.d.hidden;
    float *y = poisoned((size_t)ROWS * hidden), *alone = poisoned((size_t)hidden);
    double want[256];
    /* The table that rounds x for weights in bf16 is off by as much; for those of few bits all
     * round it, to 16 bits. */
    int rounds = strcmp(w.backend->name, "avx512_bf16") == 0 && dtype == INF_DTYPE_BF16;
    double tolerance = rounds ? 0.03 : dtype == INF_DTYPE_I8 ? 2e-4 : 4e-6;
    run(&w, w.x, y, ROWS);
    for (int32_t r = 0; r < ROWS; r++) {
        reference(&w, w.x + (size_t)r * hidden, want);
        for (int32_t c = 0; c < hidden; c++)
            CHECK(near(y[(size_t)r * hidden + c], want[c], tolerance),
                  "%s: dtype %d [%d, %d]: %g, want %g", w.backend->name, dtype, r, c,
                  y[(size_t)r * hidden + c], want[c]);
    }
    for (int32_t r = 0; r < ROWS; r += 4) { /* alone, and where y is x */
        run(&w, w.x + (size_t)r * hidden, alone, 1);
        CHECK(same_bits(alone, y + (size_t)r * hidden, (size_t)hidden), "%s: row %d alone",
              w.backend->name, r);
    }
    run(&w, w.x, w.x, ROWS);
    CHECK(same_bits(w.x, y, (size_t)ROWS * hidden), "%s: in place", w.backend->name);
    close_world(&w);
    if (pool != NULL) { /* the same bits by one thread */
        seed_state = state;
        w = open_world(isa, NULL, dtype, shared, normalise);
        run(&w, w.x, w.x, ROWS);
        CHECK(same_bits(w.x, y, (size_t)ROWS * hidden), "%s: by one thread", w.backend->name);
        close_world(&w);
    }
    free(y);
    free(alone);
}

int main(void) {
    inf_pool *pool = NULL;
    seed(7); /* of others two experts may be as likely as each other within rounding */
    if (inf_pool_open(3, &pool) != 0)
        return 2;
    for (int32_t i = 0; i < 40; i++) {
        int32_t n = 1 + below(i % 4 == 0 ? 130 : 9);
        check_route(1 + below(5), n, 1 + below(n < 16 ? n : 16), i % 2);
    }
    test_odd_logits();
    test_group();
    for (int32_t isa = ISA_FIRST; isa <= ISA_LAST; isa++) {
        if (inf_ops_cpu(isa) == NULL)
            continue;
        for (int32_t i = 0; i < 4; i++) {
            check_experts(isa, pool, INF_DTYPE_F32, i % 2, i / 2);
            check_experts(isa, pool, INF_DTYPE_BF16, i % 2, i / 2);
            check_experts(isa, pool, INF_DTYPE_I8, i % 2, i / 2);
        }
    }
    inf_pool_close(pool);
    return report("experts");
}
