/* What the tests of attention share that run a list of pieces: a step's input on the GPU, fresh
 * outputs, and their comparison with the reference. */
#ifndef INF_ATTENTION_CHECK_H
#define INF_ATTENTION_CHECK_H

#include "kernels/cuda/attention_decode.h"
#include "tests/cuda/attention_rows.h"

/* Every (row, head) of the pieces. */
static std::vector<wanted> reference(const step *s, const inf_cuda_work *work, int32_t n) {
    std::vector<wanted> all;
    for (int32_t i = 0; i < n; i++) {
        for (uint32_t r = 0; r < work[i].rows; r++) {
            for (int32_t h = 0; h < s->args.heads; h++) {
                all.push_back({&work[i], r, h, 0, {}});
            }
        }
    }
    compute_all(s, all);
    return all;
}

static void check_outputs(const step *s, const outputs *out, const std::vector<wanted> &want,
                          tolerances *tol) {
    std::vector<uint8_t> whole((size_t)s->rows, 0);
    for (const wanted &x : want) {
        check_row(s, out, x, tol);
        if (x.work->part == INF_CUDA_WHOLE) {
            whole[s->segments[x.work->segment].row0 + x.work->row0 + x.row] = 1;
        }
    }
    check_unwritten(s, out, whole);
}

typedef int (*launcher)(const inf_cuda_attn *p, int index, inf_stream stream);

/* Variant DEFAULT is the launcher that chooses one. */
enum { DEFAULT = -1 };
static int launch_decode(const inf_cuda_attn *p, int index, inf_stream stream) {
    return index == DEFAULT ? inf_cuda_attn_decode_launch(p, stream)
                            : inf_cuda_decode_variant_launch(p, index, stream);
}

static int launch_plain(const inf_cuda_attn *p, int index, inf_stream stream) {
    (void)index;
    return inf_cuda_attn_plain_launch(p, stream);
}

/* A step's input on the GPU. */
struct uploaded {
    guarded q, pool, blocks, segments;
};

static uploaded upload(const step *s) {
    size_t numbers_in_q = (size_t)s->rows * (size_t)s->args.heads * (size_t)s->args.kv.head_dim;
    return {guard_copy(s->q, numbers_in_q * format_size(s->args.act)),
            guard_copy(s->pool, (size_t)s->pool_blocks * s->args.kv.block_bytes),
            guard_copy(s->blocks, (size_t)s->n_blocks * 4),
            guard_copy(s->segments, (size_t)s->n_segments * sizeof s->segments[0])};
}

static void drop(const uploaded &u) {
    for (const guarded &g : {u.q, u.pool, u.blocks, u.segments}) {
        must(cudaFree(g.base), "cudaFree");
    }
}

/* A list with room for some pieces more, which a launch may be made for. */
enum { MORE_PIECES = 2 };
static guarded guard_list(const inf_cuda_work *work, int32_t n) {
    guarded g = guard((size_t)(n + MORE_PIECES) * sizeof *work);
    must(cudaMemcpy(g.p(), work, (size_t)n * sizeof *work, cudaMemcpyHostToDevice), "cudaMemcpy");
    return g;
}

/* Runs a list through a kernel on fresh outputs and checks all of it. */
static outputs run(const step *s, const uploaded &u, launcher launch, int index,
                   const inf_cuda_work *work, int32_t n, const std::vector<wanted> &want,
                   tolerances *tol) {
    size_t heads = (size_t)s->args.heads, dim = (size_t)s->args.kv.head_dim;
    size_t rows = (size_t)s->rows;
    guarded list = guard_list(work, n), n_work = guard_copy(&n, 4);
    guarded o = guard(rows * heads * dim * format_size(s->args.o_dtype));
    guarded lse = guard(rows * heads * 4);
    guarded part_o = guard(s->lists.n_parts * heads * dim * 4);
    guarded part_lse = guard(s->lists.n_parts * heads * 4);
    inf_cuda_attn a = s->args;
    a.q = u.q.p(), a.pool = u.pool.as<uint8_t>(), a.blocks = u.blocks.as<int32_t>();
    a.segments = u.segments.as<inf_cuda_segment>(), a.work = list.as<inf_cuda_work>();
    a.n_work = n_work.as<int32_t>(), a.o = o.p(), a.lse = lse.as<float>();
    a.part_o = part_o.as<float>(), a.part_lse = part_lse.as<float>();
    /* fewer blocks than pieces: each takes several; more: some have none */
    a.max_work = below(2) ? 1 + below(n + 1) : n + below(MORE_PIECES + 1);
    a.early = below(2);
    int error = launch(&a, index, NULL);
    CHECK(error == 0, "launch: error %d", error);
    (void)take(list);
    (void)take(n_work);
    outputs out = {take(o), take(lse), take(part_o), take(part_lse)};
    check_outputs(s, &out, want, tol);
    return out;
}

#endif
