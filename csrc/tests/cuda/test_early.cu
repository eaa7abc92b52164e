/* Decode attention that begins beside the kernel in front of it (early = 2), which writes q and the
 * rows' own keys, and takes its time: they are NaN until then, so whoever does not wait for them
 * computes NaN. On an emulated GPU kernels follow each other; there the race detector knows what
 * was not waited for. */
#ifdef INF_EMU
enum { ROUNDS = 6, MOST_TOKENS = 300, MOST_REQUESTS = 4 };
#else
enum { ROUNDS = 10, MOST_TOKENS = 3000, MOST_REQUESTS = 6 };
#endif

#include "tests/cuda/attention_check.h"

/* What the kernel in front writes: words of `to` that are not yet as in `from`. */
struct front_args {
    uint32_t *to[2];
    const uint32_t *from[2];
    size_t words[2];
    long long cycles; /* that it takes before it begins */
};

static __global__ void front_kernel(const __grid_constant__ front_args a) {
    start_successor();
    after_predecessor();
#ifndef INF_EMU
    for (long long begun = clock64(); clock64() - begun < a.cycles;) {
    }
#endif
    size_t first = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    for (int k = 0; k < 2; k++) {
        for (size_t i = first; i < a.words[k]; i += (size_t)gridDim.x * blockDim.x) {
            if (a.to[k][i] != a.from[k][i]) {
                a.to[k][i] = a.from[k][i];
            }
        }
    }
}

static front_args front;

static int launch_behind(const inf_cuda_attn *p, int index, inf_stream stream) {
    inf_cuda_attn a = *p;
    int error = (int)INF_LAUNCH(front_kernel, dim3(4), dim3(256), 0, stream, front);
    a.early = 2;
    return error != 0 ? error : launch_decode(&a, index, stream);
}

/* Makes the keys of each segment's own rows NaN; returns how many there are. */
static int32_t forget_own(const step *s, uint8_t *pool) {
    const inf_kv_shape *k = &s->args.kv;
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_segments; i++) {
        const inf_cuda_segment *g = &s->segments[i];
        int64_t own = (int64_t)g->q_pos0 - g->kv_pos0;
        for (int64_t t = own > 0 ? own : 0; t < own + g->rows && t < g->n_tokens; t++, n++) {
            for (int32_t c = 0; c < 2 * k->kv_heads; c++) {
                memset(pool + kv_at(s, g, (uint32_t)t, c % 2, c / 2), UNWRITTEN,
                       (size_t)k->head_dim * (size_t)k->elem);
            }
        }
    }
    return n;
}

static int32_t run_behind(const step *s, int variant, const std::vector<wanted> &want,
                          tolerances *tol) {
    uploaded now = upload(s), then = upload(s);
    size_t q = now.q.bytes, pool = now.pool.bytes;
    std::vector<uint8_t> before(s->pool, s->pool + pool);
    int32_t own = forget_own(s, before.data());
    must(cudaMemcpy(now.pool.p(), before.data(), pool, cudaMemcpyHostToDevice), "cudaMemcpy");
    must(cudaMemset(now.q.p(), UNWRITTEN, q), "cudaMemset");
    front = {{now.q.as<uint32_t>(), now.pool.as<uint32_t>()},
             {then.q.as<uint32_t>(), then.pool.as<uint32_t>()},
             {q / 4, pool / 4},
             200000};
    run(s, now, launch_behind, variant, s->lists.decode, s->lists.n_decode, want, tol);
    drop(now);
    drop(then);
    return own;
}

static void test_behind(int32_t act, int32_t kv, int32_t head_dim) {
    static const int32_t blocks[] = {8, 16, 32, 64}, windows[] = {0, 0, 0, 50};
    tolerances tol = {1e-2, 1e-3, 0, 0};
    int32_t own = 0, n = 0, before = failures;
    for (int32_t i = 0; i < (brief() ? 1 : (int32_t)ROUNDS); i++) {
        static step s;
        int32_t out = below(2) ? act : (int32_t)INF_DTYPE_F32;
        form f = {act, kv, out, head_dim, 8, 2, blocks[below(4)], windows[below(4)], 0};
        make_step(&s, &f, 4, MOST_TOKENS);
        std::vector<wanted> want = reference(&s, s.lists.decode, s.lists.n_decode);
        for (int v = DEFAULT; v < inf_cuda_decode_variants(); v++) {
            inf_cuda_decode_variant about = {};
            about.resident = 1;
            CHECK(v == DEFAULT || inf_cuda_decode_variant_of(&s.args, v, &about) == 0,
                  "no variant %d", v);
            if (about.resident > 0) {
                own += run_behind(&s, v, want, &tol);
                n += s.lists.n_decode;
            }
        }
        drop_step(&s);
    }
    CHECK(own > 0, "no row had keys of its own");
    printf("behind what writes q and %d own keys, act %s, KV %s, head_dim %d: %d pieces, o to "
           "%.1e, lse to %.1e%s\n",
           own, format_name(act), format_name(kv), head_dim, n, tol.seen_o, tol.seen_lse,
           failures > before ? " FAILED" : "");
}

int main(int argc, char **argv) {
    start(argc, argv);
    for (int32_t head_dim : {128, 64}) {
        test_behind(INF_DTYPE_BF16, INF_DTYPE_BF16, head_dim);
        test_behind(INF_DTYPE_F16, INF_DTYPE_F16, head_dim);
        test_behind(INF_DTYPE_BF16, INF_DTYPE_E4M3, head_dim);
    }
    return report("attention that begins early");
}
