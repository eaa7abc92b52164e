/* The merge of partial attention, in every table that this CPU has, and the property on which
 * everything rests: spans cut anywhere and merged equal the whole. */
#include "attention_request.h"

/* Attends over `pieces` spans cut at block boundaries and merges them in a random order, leaving
 * out the piece `dropped` (-1: none). */
static void attend_pieces(const inf_ops *ops, request *r, int32_t pieces, int32_t dropped, float *o,
                          float *lse) {
    int32_t cuts[9], order[8], blocks = (r->s.tokens + r->s.block_size - 1) / r->s.block_size;
    size_t queries = (size_t)r->s.rows * r->s.heads;
    float *part_o = poisoned(queries * r->s.dim), *part_lse = poisoned(queries);
    for (int32_t i = 0; i < pieces; i++) {
        order[i] = i;
        cuts[i] = i == 0 ? 0 : cuts[i - 1] + below(blocks - cuts[i - 1] + 1);
    }
    cuts[pieces] = blocks;
    for (int32_t i = pieces - 1; i > 0; i--) {
        int32_t j = below(i + 1), swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    for (size_t i = 0; i < queries; i++)
        lse[i] = -INFINITY;
    memset(o, 0, queries * r->s.dim * sizeof *o);
    for (int32_t i = 0; i < pieces; i++) {
        int32_t first = cuts[order[i]] * r->s.block_size,
                end = cuts[order[i] + 1] * r->s.block_size;
        end = end < r->s.tokens ? end : r->s.tokens;
        if (order[i] == dropped)
            continue;
        inf_attn args = *args_of(r);
        args.blocks += cuts[order[i]];
        args.kv_pos0 += (uint32_t)first;
        args.n_tokens = end > first ? (uint32_t)(end - first) : 0;
        args.o = part_o;
        args.lse = part_lse;
        ops->attention(NULL, &args, 1);
        ops->merge(o, lse, part_o, part_lse, r->s.rows, r->s.heads, r->s.dim);
    }
    free(part_o);
    free(part_lse);
}

static double furthest(const float *a, const float *b, size_t n) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double d = a[i] == b[i] ? 0 : fabs((double)a[i] - b[i]);
        worst = d <= worst ? worst : d;
    }
    return worst;
}

static void test_pieces(const inf_ops *ops) {
    for (int32_t round = 0; round < 150; round++) {
        request r = make_request(random_shape());
        size_t queries = (size_t)r.s.rows * r.s.heads;
        float *o = poisoned(queries * r.s.dim), *lse = poisoned(queries);
        ops->attention(NULL, args_of(&r), 1);
        attend_pieces(ops, &r, 2 + round % 7, -1, o, lse);
        double o_off = furthest(o, r.o, queries * r.s.dim), lse_off = furthest(lse, r.lse, queries);
        CHECK(o_off <= 1e-5 && lse_off <= 1e-5, "%s: pieces: o off by %g, lse by %g", ops->name,
              o_off, lse_off);
        free(o);
        free(lse);
        free_request(&r);
    }
}

/* The negative control: without one piece that is seen the result is another. */
static void test_dropped_piece(const inf_ops *ops) {
    for (int32_t round = 0; round < 20; round++) {
        request r = make_request((shape){.rows = 3,
                                         .heads = 4,
                                         .kv_heads = 2,
                                         .dim = 64,
                                         .block_size = 1,
                                         .dtype = INF_DTYPE_BF16,
                                         .tokens = 2});
        r.args.q_pos0 += 100; /* every row sees both keys */
        float o[3 * 4 * 64], lse[3 * 4];
        ops->attention(NULL, args_of(&r), 1);
        /* Five pieces of two keys: some are empty, so drop each in turn from the same cuts. */
        int32_t changed = 0;
        uint64_t cuts_seed = seed_state;
        for (int32_t dropped = 0; dropped < 5; dropped++) {
            seed_state = cuts_seed;
            attend_pieces(ops, &r, 5, dropped, o, lse);
            changed += furthest(lse, r.lse, 12) > 1e-3 && furthest(o, r.o, 12 * 64) > 1e-3;
        }
        CHECK(changed == 1 || changed == 2, "%s: %d of 5 pieces matter", ops->name, changed);
        free_request(&r);
    }
}

static void test_merge_empty(const inf_ops *ops) {
    static const int32_t dims[] = {5, 16, 24, 80, 128};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        int32_t dim = dims[i];
        size_t n = 3 * (size_t)dim;
        float *x = numbers(n), *zero = get_bytes(n * sizeof *zero), *o = get_bytes(n * sizeof *o);
        memset(zero, 0, n * sizeof *zero);
        for (int32_t left = 0; left < 2; left++)
            for (int32_t right = 0; right < 2; right++) {
                float lse[3] = {-INFINITY, -INFINITY, -INFINITY}, lse2[3];
                for (int32_t j = 0; j < 3; j++) {
                    lse[j] = left ? (float)j - 200.0f : -INFINITY;
                    lse2[j] = right ? 300.0f - (float)j : -INFINITY;
                }
                memcpy(o, left ? x : zero, n * sizeof *o);
                ops->merge(o, lse, right ? x : zero, lse2, 1, 3, dim);
                CHECK(furthest(o, left || right ? x : zero, n) <= 1e-6, "%s: o, %d %d", ops->name,
                      left, right);
                for (int32_t j = 0; j < 3; j++) {
                    float want = right ? 300.0f - (float)j : left ? (float)j - 200.0f : -INFINITY;
                    CHECK(lse[j] == want, "%s: lse %g, want %g", ops->name, lse[j], want);
                }
            }
        free(x);
        free(zero);
        free(o);
    }
}

static void test_table(const inf_ops *ops) {
    test_pieces(ops);
    test_dropped_piece(ops);
    test_merge_empty(ops);
}

int main(void) { return each_table("attention_merge", test_table); }
