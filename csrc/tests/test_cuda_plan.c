/* Random steps are planned for the GPU and their plans checked; and what cannot be planned is
 * refused.
 */
#include "tests/plan_check.h"

/* Up to 2^(0..bits): small and big numbers alike often. */
static uint32_t any_size(int32_t bits) { return (uint32_t)below(1 << below(bits + 1)); }

/* Requests one after another; each has its own segment, whose keys end with its own rows, and maybe
 * spans before it. Now and then rows that nobody names lie in between. */
static void random_step(step *s, int32_t max_requests, int32_t row_bits, int32_t token_bits) {
    static const int32_t heads[][2] = {{32, 8}, {8, 8}, {16, 1}, {40, 8}, {28, 4}, {64, 2}, {1, 1}};
    memset(s, 0, sizeof *s);
    int32_t h = below(7);
    s->shape = (inf_cuda_plan_shape){.heads = heads[h][0],
                                     .kv_heads = heads[h][1],
                                     .window = below(3) == 0 ? 1 + (int32_t)any_size(12) : 0,
                                     .sms = 1 + below(200),
                                     .decode_resident = below(3),
                                     .prefill_resident = below(3)};
    int32_t requests = 1 + below(max_requests);
    for (int32_t i = 0; i < requests && s->n + 4 < MOST_SEGMENTS; i++) {
        uint32_t rows = below(2) ? 1 : 1 + any_size(row_bits), pos = 0;
        s->rows += below(4) == 0 ? below(3) : 0;
        for (int32_t spans = below(3) == 0 ? below(4) : 0; spans > 0; spans--) {
            uint32_t n = any_size(token_bits);
            s->segments[s->n++] = (inf_cuda_segment){(uint32_t)s->rows, rows, 0, pos, n, 0};
            pos += n;
        }
        uint32_t own = any_size(token_bits);
        inf_cuda_segment *last = &s->segments[s->n++];
        *last = (inf_cuda_segment){(uint32_t)s->rows, rows, 0, pos, own + rows, 0};
        for (inf_cuda_segment *t = s->segments; t <= last; t++)
            if (t->row0 == (uint32_t)s->rows)
                t->q_pos0 = pos + own;
        if (below(8) == 0) /* a span alone, part of it or all after the rows */
            last->q_pos0 = last->q_pos0 > 100 ? last->q_pos0 - 100 : 0;
        s->rows += (int32_t)rows;
    }
    fill_limits(s);
}

/* Within the capacity of exactly this step's limits it must work; with one entry less than it needs
 * it must say so and write no further. */
static void test_random(int32_t rounds, int32_t max_requests, int32_t row_bits,
                        int32_t token_bits) {
    static step s;
    for (int32_t i = 0; i < rounds; i++) {
        random_step(&s, max_requests, row_bits, token_bits);
        planned p;
        CHECK(inf_cuda_plan_capacity(&s.shape, &s.limits, &p.sizes) == INF_OK, "no capacity");
        give_lists(&p);
        int status = inf_cuda_plan(&s.shape, s.segments, s.n, s.rows, &p.sizes, &p.lists);
        CHECK(status == INF_OK, "status %d", status);
        if (status == INF_OK)
            check_plan(&s, &p);
        drop_lists(&p);
        planned q = {
            .sizes = {p.lists.n_decode, p.lists.n_prefill, (int32_t)p.lists.n_parts, s.rows}};
        give_lists(&q);
        CHECK(inf_cuda_plan(&s.shape, s.segments, s.n, s.rows, &q.sizes, &q.lists) == INF_OK,
              "exact sizes are not enough");
        drop_lists(&q);
        int32_t *size[] = {&q.sizes.decode, &q.sizes.prefill, &q.sizes.parts, &q.sizes.rows};
        int32_t which = below(4);
        if (*size[which] == 0)
            continue;
        (*size[which])--;
        give_lists(&q);
        CHECK(inf_cuda_plan(&s.shape, s.segments, s.n, s.rows, &q.sizes, &q.lists) == INF_EFULL,
              "size %d too small and not said", which);
        drop_lists(&q);
    }
    printf("random steps of %d requests, 2^%d rows, 2^%d tokens: %d\n", max_requests, row_bits,
           token_bits, rounds);
}

static void test_forced(int32_t rounds) {
    static step s;
    for (int32_t i = 0; i < rounds; i++) {
        random_step(&s, 6, 8, 12);
        s.shape.decode_chunk = 64 * (1 + below(8));
        s.shape.prefill_chunk = 128 * (1 + below(8));
        planned p = {.sizes = {1 << 14, 1 << 14, 1 << 21, s.rows}};
        give_lists(&p);
        int status = inf_cuda_plan(&s.shape, s.segments, s.n, s.rows, &p.sizes, &p.lists);
        CHECK(status == INF_OK, "status %d", status);
        if (status == INF_OK)
            check_plan(&s, &p);
        for (int32_t k = 0; k < p.lists.n_decode && status == INF_OK; k++)
            CHECK(p.lists.decode[k].tokens <= (uint32_t)s.shape.decode_chunk, "%u tokens",
                  p.lists.decode[k].tokens);
        drop_lists(&p);
    }
    printf("forced chunks: %d\n", rounds);
}

static void test_refusals(void) {
    inf_cuda_plan_shape good = {.heads = 8, .kv_heads = 2, .sms = 4}, bad[6];
    inf_cuda_plan_limits limits = {4, 8, 8, 8};
    planned p;
    CHECK(inf_cuda_plan_capacity(&good, &limits, &p.sizes) == INF_OK, "refused");
    give_lists(&p);
    for (int32_t i = 0; i < 6; i++)
        bad[i] = good;
    bad[0].heads = 0;
    bad[1].kv_heads = 3;
    bad[2].window = -1;
    bad[3].sms = 0;
    bad[4].decode_chunk = 65;
    bad[5].prefill_chunk = 64;
    inf_cuda_segment s = {2, 3, 0, 0, 16, 0};
    for (int32_t i = 0; i < 6; i++)
        CHECK(inf_cuda_plan(&bad[i], &s, 1, 8, &p.sizes, &p.lists) == INF_EINVAL, "shape %d", i);
    CHECK(inf_cuda_plan(&good, &s, 1, 4, &p.sizes, &p.lists) == INF_EINVAL, "rows beyond");
    s.row0 = UINT32_MAX;
    CHECK(inf_cuda_plan(&good, &s, 1, 8, &p.sizes, &p.lists) == INF_EINVAL, "rows wrap");
    CHECK(inf_cuda_plan(&good, &s, 1, 9, &p.sizes, &p.lists) == INF_EFULL, "more rows than off");
    CHECK(inf_cuda_plan(&good, &s, 0, 8, &p.sizes, &p.lists) == INF_OK, "no segment");
    CHECK(p.lists.n_decode == 0 && p.lists.n_prefill == 0 && p.lists.n_parts == 0, "pieces");
    drop_lists(&p);
}

int main(int argc, char **argv) {
    start(argc, argv);
    test_refusals();
    test_random(2000, 8, 9, 10);
    test_random(1000, 30, 4, 16);
    test_random(300, 4, 13, 20);
    test_random(100, 30, 7, 28);
    test_forced(500);
    return report("cuda_plan");
}
