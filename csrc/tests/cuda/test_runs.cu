/* Rows to and from the places where messages lie (runs.cu). The merge of partials that lie there is
 * tested beside the other merge, in test_heads.cu. */
#include "tests/cuda/some_runs.h"

/* Enough for more runs than a launch takes; the race detector is slow. */
#ifdef INF_EMU_RACES
enum { SOME_ROWS = 6, ROUNDS = 1 };
#else
enum { SOME_ROWS = 150, ROUNDS = 3 };
#endif

/* Rows out and back in: widened exactly, and narrowed to what they were. */
static void check_give(int32_t dtype, int32_t rows, int32_t heads, int32_t head_dim, bool mixed) {
    int32_t all = rows + 3;
    size_t n = (size_t)heads * (size_t)head_dim, bytes = dtype == INF_DTYPE_F32 ? 4 : 2;
    std::vector<uint32_t> row = some_rows(rows, all, mixed);
    std::vector<float> plain(n * (size_t)all), lse((size_t)all * (size_t)heads);
    std::vector<uint16_t> half = halves(n * (size_t)all, dtype);
    std::vector<uint8_t> q(plain.size() * bytes);
    for (size_t i = 0; i < plain.size(); i++) {
        plain[i] = dtype == INF_DTYPE_F32 ? number() : (float)number_of(half[i], dtype);
        memcpy(&q[i * bytes], dtype == INF_DTYPE_F32 ? (void *)&plain[i] : (void *)&half[i], bytes);
    }
    for (float &x : lse) {
        x = number();
    }
    const place_of_heads place = some_place((size_t)heads);
    const size_t first = place.first * (size_t)head_dim, pitch = place.stride * (size_t)head_dim;
    std::vector<float> empty((size_t)rows * pitch, NAN), no_lse((size_t)rows * place.stride, NAN);
    std::vector<uint8_t> none(q.size(), 0xa5);
    guarded src = guard_copy(q), src_lse = guard_copy(lse), back = guard_copy(none);
    guarded at = guard_copy(empty, below(3) ? 0 : 4), at_lse = guard_copy(no_lse);
    inf_cuda_give out = {};
    out.src = src.as<void>();
    out.src_lse = src_lse.as<float>();
    out.dtype = dtype;
    out.heads = heads;
    out.head_dim = head_dim;
    out.early = some_early();
    launch_runs(out, inf_cuda_give_launch, row, at.as<float>() + first,
                at_lse.as<float>() + place.first, place.stride, (size_t)head_dim);
    /* What is fetched is there before the launch, as what peers write is: with early it is read
     * beside the kernel in front. */
    must(cudaDeviceSynchronize(), "give");
    inf_cuda_fetch in = {};
    in.dst = back.as<void>();
    in.dtype = dtype;
    in.heads = heads;
    in.head_dim = head_dim;
    in.early = some_early();
    launch_runs(in, inf_cuda_fetch_launch, row, at.as<float>() + first, NULL, place.stride,
                (size_t)head_dim);
    std::vector<uint8_t> got = take(at), got_lse = take(at_lse), got_back = take(back);
    size_t wrong = 0;
    for (size_t i = 0; i < (size_t)rows; i++) {
        size_t r = row[i];
        memcpy(&empty[i * pitch + first], &plain[r * n], n * 4);
        memcpy(&no_lse[i * place.stride + place.first], &lse[r * (size_t)heads], (size_t)heads * 4);
        memcpy(&none[r * n * bytes], &q[r * n * bytes], n * bytes);
    }
    wrong += memcmp(got.data(), empty.data(), got.size()) != 0; /* nothing between them either */
    wrong += memcmp(got_lse.data(), no_lse.data(), got_lse.size()) != 0;
    CHECK(wrong == 0 && got_back == none, "format %d, %d rows of %d x %d, mixed %d: %zu wrong",
          dtype, rows, heads, head_dim, mixed, wrong);
    for (const guarded &g : {src, src_lse}) {
        take(g);
    }
}

static void test_give() {
    static const int32_t dims[] = {128, 64, 80, 10, 1};
    for (int32_t dtype : FORMATS) {
        for (int32_t dim : dims) {
            check_give(dtype, 1, 1 + below(9), dim, false);
            check_give(dtype, 1 + below(SOME_ROWS), 1 + below(9), dim, true);
        }
    }
    inf_cuda_give p = {};
    p.heads = p.head_dim = 1;
    p.dtype = INF_DTYPE_F32;
    CHECK(inf_cuda_give_launch(&p, NULL) == 0, "nothing to give");
    p.runs.n = INF_CUDA_RUNS + 1;
    CHECK(inf_cuda_give_launch(&p, NULL) != 0, "more runs than there are");
    p.runs.n = p.runs.rows = 0;
    float x = 0;
    (void)inf_cuda_runs_add(&p.runs, 0, 1, &x, NULL, 1);
    p.heads = 2;
    CHECK(inf_cuda_give_launch(&p, NULL) != 0, "rows that overlap");
    printf("give and fetch\n");
}

int main(int argc, char **argv) {
    start(argc, argv);
    for (int32_t i = 0; i < (brief() ? 1 : ROUNDS); i++) {
        test_give();
    }
    return report("test_runs");
}
