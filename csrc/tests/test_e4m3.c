/* The format of fp8 KV, in every table that this CPU has: all 256 codes to f32, by convert and by
 * attention; f32 to codes at, just below and just above every number and every middle of two, NaN,
 * infinities, what saturates, and numbers at random, by convert and by append. */
#include "kernel_check.h"
#include "kernels/convert.h"

enum { DIM = 256, MOST = 8192 };

static float bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Whether the code that a number became is the right one. */
static int right_code(float f, uint8_t got) { return got == to_e4m3((double)f); }

/* Every number and the middle of every two neighbours, with the floats on both sides; both signs.
 */
static int32_t boundaries(float *to) {
    static const uint32_t others[] = {0x7fc00000, 0x7f800001, 0x7f800000, 0x7f7fffff, 0x43e00001,
                                      0x43e80000, 0x43f00000, 0x44000000, 0x00000001, 0x00800000};
    int32_t n = 0;
    for (uint8_t code = 0; code < 0x7f; code++) {
        double next = code < 0x7e ? from_e4m3((uint8_t)(code + 1)) : 480;
        float at[2] = {(float)from_e4m3(code), (float)((from_e4m3(code) + next) / 2)};
        for (int i = 0; i < 2; i++) {
            to[n++] = at[i];
            to[n++] = nextafterf(at[i], INFINITY);
            to[n++] = nextafterf(at[i], 0);
        }
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        to[n++] = bits(others[i]);
    for (int32_t i = 0; i < 2000; i++) /* exponents of the format and around */
        to[n++] = bits((uint32_t)(115 + below(24)) << 23 | ((uint32_t)next_u64() & 0x7fffff));
    for (int32_t i = 0, once = n; i < once; i++)
        to[n++] = -to[i];
    return n;
}

static void test_convert(void) {
    float wide[256], in[MOST];
    uint8_t codes[256], out[MOST];
    for (int32_t i = 0; i < 256; i++)
        codes[i] = (uint8_t)i;
    CHECK(inf_dtype_bytes(INF_DTYPE_E4M3) == 1, "bytes");
    inf_convert(wide, INF_DTYPE_F32, codes, INF_DTYPE_E4M3, 256);
    for (int32_t i = 0; i < 256; i++) {
        double want = from_e4m3(codes[i]);
        CHECK((double)wide[i] == want || (want != want && wide[i] != wide[i]), "%#x is %g",
              (unsigned)i, (double)wide[i]);
        CHECK((i & 0x7f) == 0x7f || !signbit(wide[i]) == (i < 0x80), "the sign of %#x",
              (unsigned)i);
    }
    int32_t n = boundaries(in);
    inf_convert(out, INF_DTYPE_E4M3, in, INF_DTYPE_F32, (uint64_t)n);
    for (int32_t i = 0; i < n; i++)
        CHECK(right_code(in[i], out[i]), "%a became %#x, not %#x", (double)in[i], out[i],
              to_e4m3((double)in[i]));
    CHECK(to_e4m3(464) == 0x7e && to_e4m3(INFINITY) == 0x7e && to_e4m3(-INFINITY) == 0xfe &&
              to_e4m3((double)NAN) == 0x7f && to_e4m3(0x1p-10) == 0 && to_e4m3(-0x1.8p-9) == 0x82,
          "the test's own format");
}

/* One token's K or V in a pool of one block. */
typedef struct token {
    inf_kv_shape kv;
    uint8_t pool[2 * DIM];
    int32_t block;
} token;

static token new_token(void) {
    token t = {.kv = {.layers = 1,
                      .kv_heads = 1,
                      .block_size = 1,
                      .head_dim = DIM,
                      .dtype = INF_DTYPE_E4M3,
                      .elem = 1,
                      .block_bytes = 2 * DIM}};
    return t;
}

/* Every table's append rounds as convert does. */
static void test_append(const inf_ops *ops) {
    static float in[MOST + DIM];
    int32_t n = boundaries(in);
    for (int32_t first = 0; first < n; first += DIM) {
        token t = new_token();
        const float *v = in + (n - first < DIM ? n - DIM : first);
        ops->kv_append(t.pool, &t.kv, 0, &t.block, 0, in, v, 1, DIM);
        for (int32_t d = 0; d < DIM; d++)
            CHECK(right_code(in[d], t.pool[d]) && right_code(v[d], t.pool[DIM + d]),
                  "%s: %a became %#x", ops->name, (double)v[d], t.pool[DIM + d]);
    }
}

static float attend(const inf_ops *ops, const token *t, const float *q, float *o) {
    float lse;
    inf_attn a = {.q = q,
                  .rows = 1,
                  .heads = 1,
                  .pool = t->pool,
                  .kv = &t->kv,
                  .blocks = &t->block,
                  .n_tokens = 1,
                  .scale = 1,
                  .o = o,
                  .lse = &lse};
    ops->attention(NULL, &a, 1);
    return lse;
}

/* The only key has the weight 1: o is V to the bit, and the lse of a query that picks one number of
 * K is that number. */
static void test_codes(const inf_ops *ops) {
    token t = new_token();
    float q[DIM] = {0}, o[DIM];
    for (int32_t d = 0; d < DIM; d++)
        t.pool[DIM + d] = (uint8_t)d;
    (void)attend(ops, &t, q, o);
    for (int32_t d = 0; d < DIM; d++) {
        double want = from_e4m3((uint8_t)d);
        CHECK((double)o[d] == want || (want != want && o[d] != o[d]), "%s: V %#x is %g", ops->name,
              (unsigned)d, (double)o[d]);
    }
    for (int32_t code = 0; code < 256; code++) {
        int32_t d = below(DIM);
        if ((code & 0x7f) == 0x7f)
            continue; /* a NaN's score is no number */
        memset(t.pool, 0, DIM);
        memset(q, 0, sizeof q);
        t.pool[d] = (uint8_t)code;
        q[d] = 1;
        float lse = attend(ops, &t, q, o);
        CHECK((double)lse == from_e4m3((uint8_t)code), "%s: K %#x is %g", ops->name, (unsigned)code,
              (double)lse);
    }
}

int main(void) {
    seed(8);
    test_convert();
    for (int32_t isa = ISA_FIRST; isa <= ISA_LAST; isa++) {
        const inf_ops *ops = inf_ops_cpu(isa);
        if (ops == NULL) {
            printf("isa %d: not on this CPU\n", isa);
            continue;
        }
        test_append(ops);
        test_codes(ops);
    }
    return report("test_e4m3");
}
