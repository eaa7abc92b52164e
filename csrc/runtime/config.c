/* The check of a device's config, before anything of it is used. */
#include "kernels/convert.h"
#include "runtime/fail.h"
#include "runtime/runtime.h"

static int in_range(int64_t value, int64_t low, int64_t high) {
    return value >= low && value <= high;
}

static int check_experts(const inf_device_config *c, inf_err *err) {
    if (c->experts == 0) {
        int none = c->experts_per_token == 0 && c->expert_intermediate == 0 &&
                   c->shared_intermediate == 0 && (c->model_flags & INF_MODEL_NORM_TOPK) == 0;
        return none ? INF_OK
                    : inf_fail(err, INF_EINVAL, -1, -1,
                               "a model without experts cannot have sizes or flags of experts");
    }
    if (!in_range(c->experts, 1, INF_MAX_EXPERTS) ||
        !in_range(c->experts_per_token, 1, INF_MAX_EXPERTS_PER_TOKEN) ||
        c->experts_per_token > c->experts || !in_range(c->expert_intermediate, 1, 1 << 20) ||
        !in_range(c->shared_intermediate, 0, 1 << 20)) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "experts must be 1 to %d, experts_per_token at most %d and the experts, "
                        "their sizes in range",
                        INF_MAX_EXPERTS, INF_MAX_EXPERTS_PER_TOKEN);
    }
    /* Places of a step's rows with their experts are int32. */
    if ((int64_t)c->max_tokens * c->experts_per_token > 1 << 24) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "cannot compute %d experts for each of %d tokens in a step",
                        c->experts_per_token, c->max_tokens);
    }
    return INF_OK;
}

/* The sizes that are cut besides heads: of the MLP, of an expert, and of the shared one. */
static int check_cut(int32_t size, const char *what, const inf_device_config *c, inf_err *err) {
    int32_t n = c->tensor_parallel;
    if (size % n != 0) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "cannot cut an intermediate size of %d%s over %d ranks: it must be a "
                        "multiple of them",
                        size, what, n);
    }
    int32_t group = inf_dtype_group(c->matrix_dtype);
    if (group != 0 && size / n % group != 0) {
        return inf_fail(err, INF_EUNSUPPORTED, -1, -1,
                        "cannot cut matrices of few bits over %d ranks: an intermediate size of "
                        "%d%s must give each a multiple of %d",
                        n, size, what, group);
    }
    return INF_OK;
}

/* Says what a model would need to be cut over so many ranks. */
static int check_ranks(const inf_device_config *c, inf_err *err) {
    int32_t n = c->tensor_parallel;
    if (!in_range(n, 0, INF_MAX_RANKS) || !in_range((int64_t)c->gpu + n, 0, 1024 + 1)) {
        return inf_fail(err, INF_EINVAL, -1, -1, "tensor_parallel must be 1 to %d, within the GPUs",
                        INF_MAX_RANKS);
    }
    if (n > 1 && (c->heads % n != 0 || c->intermediate % n != 0)) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "cannot cut %d heads and an intermediate size of %d over %d ranks: both "
                        "must be multiples of it",
                        c->heads, c->intermediate, n);
    }
    if (n > 1 && c->kv_heads % n != 0) {
        return inf_fail(
            err, INF_EUNSUPPORTED, -1, -1,
            "cannot cut %d kv heads over %d ranks: it must be a multiple of them, since "
            "no kv head is kept on several ranks",
            c->kv_heads, n);
    }
    /* Those matrices are cut by inputs: groups that begin elsewhere would be other weights. */
    int32_t group = inf_dtype_group(c->matrix_dtype);
    if (n > 1 && group != 0 &&
        (c->heads / n * c->head_dim % group != 0 || c->intermediate / n % group != 0)) {
        return inf_fail(err, INF_EUNSUPPORTED, -1, -1,
                        "cannot cut matrices of few bits over %d ranks: %d heads of %d and an "
                        "intermediate size of %d must give each a multiple of %d",
                        n, c->heads, c->head_dim, c->intermediate, group);
    }
    int status = n > 1 ? check_cut(c->expert_intermediate, " of experts", c, err) : INF_OK;
    return status == INF_OK && n > 1
               ? check_cut(c->shared_intermediate, " of the shared expert", c, err)
               : status;
}

/* 0, or a factor or cap within reason; a NaN is neither. */
static int is_off_or(float value, float low, float high) {
    return value == 0 || (value >= low && value <= high);
}

/* What families differ in. */
static int check_family(const inf_device_config *c, inf_err *err) {
    if (!in_range(c->activation, INF_ACT_SILU, INF_ACT_GELU_TANH) ||
        (c->activation != INF_ACT_SILU && c->experts > 0)) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "activation %d is not known, or not that of experts", c->activation);
    }
    if (!is_off_or(c->attn_scale, 1e-6f, 1e6f) || !is_off_or(c->attn_softcap, 1e-3f, 1e6f) ||
        !is_off_or(c->logit_softcap, 1e-3f, 1e6f) || !is_off_or(c->embed_scale, 1e-6f, 1e6f)) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "attn_scale, attn_softcap, logit_softcap or embed_scale out of range");
    }
    if (!in_range(c->rotary_dim, 0, c->head_dim) || c->rotary_dim % 2 != 0 ||
        !in_range(c->ropes, 0, 2)) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "rotary_dim must be even and at most head_dim, ropes at most 2");
    }
    uint32_t flags = c->model_flags;
    if (((flags & INF_MODEL_NO_PRE_NORMS) != 0 && (flags & INF_MODEL_POST_NORMS) == 0) ||
        ((flags & INF_MODEL_QK_NORM_ALL) != 0 && (flags & INF_MODEL_QK_NORM) == 0)) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "model_flags: no norms in front need norms behind, and a norm of all heads "
                        "needs one of q and k");
    }
    if ((flags & INF_MODEL_QK_NORM_ALL) != 0 && c->tensor_parallel > 1) {
        return inf_fail(err, INF_EUNSUPPORTED, -1, -1,
                        "cannot cut a norm over all heads over %d ranks", c->tensor_parallel);
    }
    return INF_OK;
}

int inf_check_config(const inf_device_config *c, inf_err *err) {
    if (!in_range(c->layers, 1, 4096) || !in_range(c->hidden, 1, 1 << 17) ||
        !in_range(c->intermediate, 1, 1 << 20) || !in_range(c->vocab, 1, 1 << 24)) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "layers, hidden, intermediate or vocab out of range");
    }
    if (!in_range(c->heads, 1, 1024) || !in_range(c->kv_heads, 1, c->heads) ||
        c->heads % c->kv_heads != 0 || !in_range(c->head_dim, 2, 256) || c->head_dim % 2 != 0) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "heads must be a multiple of kv_heads, head_dim even and at most 256");
    }
    uint32_t known = INF_MODEL_QKV_BIAS | INF_MODEL_QK_NORM | INF_MODEL_TIED |
                     INF_MODEL_NO_WEIGHTS | INF_MODEL_NORM_TOPK | INF_MODEL_POST_NORMS |
                     INF_MODEL_NO_PRE_NORMS | INF_MODEL_QK_NORM_ALL;
    if ((c->model_flags & ~known) != 0 || !(c->rms_eps >= 0 && c->rms_eps < 1) ||
        !(c->rope_scale > 0 && c->rope_scale < 1e6f)) {
        return inf_fail(err, INF_EINVAL, -1, -1, "model_flags, rms_eps or rope_scale out of range");
    }
    if (c->dtype != INF_DTYPE_F32 && c->dtype != INF_DTYPE_BF16 &&
        !(c->dtype == INF_DTYPE_F16 && c->gpu > 0)) {
        return inf_fail(err, INF_EINVAL, -1, -1, "dtype must be F32, BF16 or, on a GPU, F16");
    }
    if (c->kv_dtype != 0 && c->kv_dtype != c->dtype && c->kv_dtype != INF_DTYPE_E4M3) {
        return inf_fail(err, INF_EINVAL, -1, -1, "kv_dtype must be 0, dtype or E4M3");
    }
    if (c->matrix_dtype != 0 && !(inf_dtype_group(c->matrix_dtype) != 0 && c->gpu == 0)) {
        return inf_fail(err, INF_EINVAL, -1, -1, "matrix_dtype must be 0 or, on the CPU, I8 or I4");
    }
    if (!in_range(c->block_size, 1, 1024) || !in_range(c->num_blocks, 1, 1 << 30)) {
        return inf_fail(err, INF_EINVAL, -1, -1, "block_size or num_blocks out of range");
    }
    if (!in_range(c->max_tokens, 1, 1 << 20) || !in_range(c->max_seqs, 1, 1 << 16) ||
        !in_range(c->max_rows, 1, 1 << 20) || !in_range(c->max_step_blocks, 1, 1 << 28) ||
        !in_range(c->max_step_spans, 0, 1 << 24) || !in_range(c->max_spans, 0, 1 << 24)) {
        return inf_fail(err, INF_EINVAL, -1, -1, "a limit of the step or of spans is out of range");
    }
    if (!in_range(c->threads, 1, 1024) || !in_range(c->isa, 0, 4) || !in_range(c->gpu, 0, 1024)) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "threads must be 1 to 1024, isa 0 to 4, gpu 0 to 1024");
    }
    int status = check_experts(c, err);
    status = status == INF_OK ? check_family(c, err) : status;
    return status == INF_OK ? check_ranks(c, err) : status;
}
