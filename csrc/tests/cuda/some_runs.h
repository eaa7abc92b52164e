/* Runs of rows for the kernels that exchange them with messages. */
#ifndef INF_SOME_RUNS_H
#define INF_SOME_RUNS_H

#include "kernels/cuda/launch.h"
#include "tests/cuda/guarded.h"

/* Rows of `all` for `rows` others, each once: 0, 1, .. or stretches in any order. */
static std::vector<uint32_t> some_rows(int32_t rows, int32_t all, bool mixed) {
    std::vector<uint32_t> at;
    std::vector<std::vector<uint32_t>> stretches;
    for (int32_t i = 0; i < all;) {
        int32_t n = mixed ? 1 + below(3) : all, end = i + n < all ? i + n : all;
        stretches.emplace_back();
        for (; i < end; i++) {
            stretches.back().push_back((uint32_t)i);
        }
    }
    for (size_t i = 0; i < stretches.size(); i++) {
        std::swap(stretches[i], stretches[(size_t)below((int32_t)i + 1)]);
    }
    for (const auto &s : stretches) {
        at.insert(at.end(), s.begin(), s.end());
    }
    at.resize((size_t)rows);
    return at;
}

/* Where a launch's heads are in rows of `stride` heads: from `first` on. Now and then all of them,
 * and at times those of a rank. */
struct place_of_heads {
    size_t first, stride;
};

static place_of_heads some_place(size_t heads) {
    size_t ranks = 1 + (size_t)below(3), rank = (size_t)below((int32_t)ranks);
    return {rank * heads, ranks * heads + (size_t)below(2) * (ranks - 1)};
}

/* Launches over runs that say: row i of at and lse, in which the launch's heads come first, is
 * row[i] of the launch's tensors. */
template <class P>
static void launch_runs(P p, int (*launch)(const P *, inf_stream), const std::vector<uint32_t> &row,
                        float *at, float *lse, size_t stride, size_t head_dim) {
    for (size_t i = 0; i < row.size();) {
        size_t n = 1;
        while (i + n < row.size() && row[i + n] == row[i + n - 1] + 1) {
            n++;
        }
        float *to_lse = lse != NULL ? lse + i * stride : NULL;
        if (!inf_cuda_runs_add(&p.runs, row[i], (int32_t)n, at + i * stride * head_dim, to_lse,
                               (int32_t)stride)) {
            CHECK(launch(&p, NULL) == 0, "launch");
            p.runs.n = p.runs.rows = 0;
            continue;
        }
        i += n;
    }
    CHECK(launch(&p, NULL) == 0, "launch");
}

#endif
