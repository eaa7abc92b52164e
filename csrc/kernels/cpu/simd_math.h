/* What the vector bodies (simd_*.h) share. The table that includes them has defined vec, W and v_*.
 */
#ifndef INF_SIMD_MATH_H
#define INF_SIMD_MATH_H

#define INLINE static inline __attribute__((always_inline))

/* Loops over register arrays must unroll fully, or the arrays stay in memory. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define UNROLL_FOR(i, n) UNROLL for (int32_t i = 0; i < (n); i++)

/* (exp(r) - 1) / r for x = n ln 2 + r with n = round(x / ln 2), ln 2 in two parts, |r| <= 0.347.
 * The Taylor sum of exp(r) to r^7 / 7! errs by r^8 / 8! < 6e-9. */
INLINE vec v_exp_parts(vec x, vec *n, vec *r) {
    *n = v_round(v_mul(x, v_set(1.44269504088896341f)));
    *r = v_fnma(*n, v_set(0.693359375f), x);
    *r = v_fnma(*n, v_set(-2.12194440054690583e-4f), *r);
    vec sum = v_set(1.0f / 5040);
    sum = v_fma(sum, *r, v_set(1.0f / 720));
    sum = v_fma(sum, *r, v_set(1.0f / 120));
    sum = v_fma(sum, *r, v_set(1.0f / 24));
    sum = v_fma(sum, *r, v_set(1.0f / 6));
    sum = v_fma(sum, *r, v_set(0.5f));
    return v_fma(sum, *r, v_set(1.0f));
}

/* exp(x) = 2^n exp(r), so the error is that of rounding, about 1e-7. exp(0) is exactly 1; -inf and
 * all x < -104 give 0, x > 89 +inf, NaN stays NaN. */
INLINE vec v_exp(vec x) {
    vec n, r, sum = v_exp_parts(v_min(v_set(90.0f), v_max(v_set(-105.0f), x)), &n, &r);
    return v_ldexp(v_fma(sum, r, v_set(1.0f)), n);
}

/* tanh(x) = e / (e + 2), e = exp(2x) - 1 = 2^n (exp(r) - 1) + 2^n - 1, so that small numbers keep
 * their digits. Beyond +-20 it is +-1; NaN stays NaN. */
INLINE vec v_tanh(vec x) {
    x = v_min(v_set(20.0f), v_max(v_set(-20.0f), x));
    vec n, r, sum = v_exp_parts(v_add(x, x), &n, &r);
    vec power = v_ldexp(v_set(1.0f), n);
    vec e = v_fma(v_mul(sum, r), power, v_sub(power, v_set(1.0f)));
    return v_div(e, v_add(e, v_set(2.0f)));
}

/* The format of what is loaded: a constant, so that the choice is the compiler's. */
enum { IN_F32 = 0, IN_BF16 = 1, IN_E4M3 = 2 };

/* W numbers, or the first n of them and zeros, at element i of data in a format. */
INLINE vec load_as(const int format, const void *p, size_t i) {
    return format == IN_E4M3   ? v_load_e4m3((const e4m3 *)p + i)
           : format == IN_BF16 ? v_load_bf16((const bf16 *)p + i)
                               : v_load((const float *)p + i);
}
INLINE vec load_as_n(const int format, const void *p, size_t i, int32_t n) {
    return format == IN_E4M3   ? v_load_e4m3_n((const e4m3 *)p + i, n)
           : format == IN_BF16 ? v_load_bf16_n((const bf16 *)p + i, n)
                               : v_load_n((const float *)p + i, n);
}

#endif
