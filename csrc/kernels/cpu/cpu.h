/* What the CPU tables share: number formats, the packed layout of weights, the geometry of an
 * attention call. Everything here is integer or scalar work that no instruction set changes. */
#ifndef INF_CPU_H
#define INF_CPU_H

#include <math.h>
#include <string.h>

#include "kernels/backend.h"

/* A packed [n, k] matrix is ceil(n / PANEL) panels; a panel is [k, PANEL]: the weights of PANEL
 * outputs for the same input stand side by side, so that one load feeds PANEL sums and a decode
 * step reads the matrix once, forwards. Outputs beyond n are zeros. All tables share the layout,
 * but for bf16 in pairs.
 * Those of few bits have the layout of quant.h. */
enum { PANEL = 16 };

enum { MAX_HEAD_DIM = 256 };

/* gelu with tanh is x / (1 + e^-u), u = x (GELU_1 + GELU_3 x^2): 2 sqrt(2 / pi), and 0.044715 of
 * it.
 */
#define GELU_1 1.5957691216057308f
#define GELU_3 0.0713548162726f

typedef uint16_t bf16;

static inline float bf16_to_f32(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Rounds to nearest, ties to even; a NaN stays a NaN. */
static inline bf16 bf16_from_f32(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (bf16)((bits >> 16) | 0x40u);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 1023u;
    if (exponent == 0) {
        float f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    uint32_t bits = sign | mantissa << 13 | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23);
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* e4m3 as in OCP's 8-bit formats (E4M3, "fn"): sign, 4 bits of exponent with bias 7, 3 of mantissa.
 * Exponent 0 is m 2^-9; 0x7e is 448, the largest; 0x7f is NaN; there are no infinities. */
typedef uint8_t e4m3;

static inline float e4m3_to_f32(e4m3 x) {
    uint32_t magnitude = x & 0x7fu, bits = (magnitude << 20) + 0x3c000000u;
    float f = (float)magnitude * 0x1p-9f;
    if (magnitude >= 8)
        memcpy(&f, &bits, sizeof f);
    if (magnitude == 0x7f)
        f = NAN;
    return x & 0x80u ? -f : f;
}

/* Rounds to nearest, ties to even; what is beyond 448 becomes 448. NaN becomes 0x7f. */
static inline e4m3 e4m3_from_f32(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint32_t sign = (bits >> 24) & 0x80u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return 0x7f;
    if (magnitude >= 0x43e00000u) /* 448 */
        return (e4m3)(sign | 0x7eu);
    if (magnitude < 0x3c800000u) { /* below 2^-6: a multiple of 2^-9, rounded by adding 2^14 */
        float shifted = fabsf(f) + 0x1p14f;
        memcpy(&bits, &shifted, sizeof bits);
        return (e4m3)(sign | (bits - 0x46800000u));
    }
    uint32_t odd = (magnitude >> 20) & 1u;
    return (e4m3)(sign | ((magnitude - 0x3c000000u + 0x7ffffu + odd) >> 20));
}

static inline int32_t ceil_div(int32_t a, int32_t b) { return a / b + (a % b != 0); }
static inline int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }

/* Tokens [*lo, *hi) of the span, counted from its first, that query row sees; empty when lo >= hi.
 */
static inline void attn_visible(const inf_attn *a, int32_t row, int32_t *lo, int32_t *hi) {
    int64_t position = (int64_t)a->q_pos0 + row, first = a->kv_pos0, n = a->n_tokens;
    int64_t end = position + 1 - first;
    int64_t start = a->window > 0 ? position - a->window + 1 - first : 0;
    *hi = (int32_t)(end < 0 ? 0 : end > n ? n : end);
    *lo = (int32_t)(start < 0 ? 0 : start > n ? n : start);
}

/* Where head's K (kv = 0) or V (1) of the span's token stands. */
static inline const uint8_t *attn_token(const inf_attn *a, int32_t kv, int32_t head,
                                        int32_t token) {
    int32_t block = a->blocks[token / a->kv->block_size];
    return a->pool + (uint64_t)block * a->kv->block_bytes +
           inf_kv_offset(a->kv, a->layer, kv, head, token % a->kv->block_size);
}

/* What inf_backend_ops.matrix gives: a packed matrix, and its dtype before it. */
typedef struct cpu_matrix {
    _Alignas(64) int32_t dtype;
    _Alignas(64) uint8_t packed[];
} cpu_matrix;

/* The layout's functions, in every table. Unknown types: 0 bytes, and nothing is packed. */
uint64_t inf_cpu_packed_bytes(int32_t dtype, int32_t n, int32_t k);
void inf_cpu_pack(int32_t dtype, const void *src, int32_t src_dtype, int32_t n, int32_t k,
                  void *dst);

/* bf16 in pairs, for tables that multiply two numbers at once: a panel is [ceil(k / 2), PANEL, 2],
 * each output's weights of inputs 2i and 2i + 1 side by side; what is beyond k is zero. */
static inline size_t pair_panel_bytes(int32_t i) {
    return (size_t)ceil_div(i, 2) * PANEL * 2 * sizeof(bf16);
}
void inf_cpu_pack_pairs(const void *src, int32_t src_dtype, int32_t n, int32_t k, void *dst);

typedef struct cpu_backend {
    inf_backend base;
    const inf_ops *ops;
} cpu_backend;

/* As in inf_backend_ops. */
void *inf_cpu_alloc(inf_backend *b, uint64_t bytes);
void inf_cpu_free(inf_backend *b, void *device);
void *inf_cpu_alloc_pool(inf_backend *b, uint64_t bytes);
void inf_cpu_free_pool(inf_backend *b, void *device, uint64_t bytes);
void *inf_cpu_matrix(inf_backend *b, int32_t dtype, const void *host, int32_t src_dtype, int32_t n,
                     int32_t k, int32_t cut);
void *inf_cpu_list(inf_backend *b, void *const *matrices, int32_t n);
void *inf_cpu_adopt(inf_backend *b, void *host, uint64_t bytes, int32_t cut);
int inf_cpu_collective_open(const inf_collective_config *config, inf_collective **out,
                            inf_err *err);

/* The tables; NULL where the build lacks the instruction set. */
const inf_ops *inf_ops_c(void);
const inf_ops *inf_ops_avx2(void);
const inf_ops *inf_ops_avx512(void);
const inf_ops *inf_ops_avx512_vnni(void);
const inf_ops *inf_ops_avx512_bf16(void);

#endif
