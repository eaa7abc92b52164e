/* The table of the including file's instruction set. */
const inf_ops *ISA_OPS(void) {
    static const inf_ops ops = {
        .name = ISA_NAME,
        .packed_bytes = gemm_packed_bytes,
        .pack = gemm_pack,
        .gemm = simd_gemm,
        .gemms = simd_gemms,
        .rms_norm = simd_rms_norm,
        .rope = simd_rope,
        .kv_append = simd_kv_append,
        .attention = simd_attention,
        .merge = simd_merge,
        .gate = simd_gate,
        .softcap = simd_softcap,
        .add = simd_add,
    };
    return &ops;
}
