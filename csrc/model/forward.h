/* One step of a decoder-only transformer (the Llama family: RMS norm, rotary positions,
 * grouped-query attention, a gated MLP; what other families have otherwise is in
 * inf_device_config), the order of the layers written once over inf_backend_ops.
 *
 * Formulas: Llama (arXiv 2302.13971), RoPE (2104.09864) with the half-split pairing of its Hugging
 * Face form, per-head q and k norm as in Qwen3 (2505.09388), norms behind
 * attention and MLP and caps of scores and logits as in Gemma 2 (2408.00118), norms behind alone
 * and over all heads as in OLMo 2 (2501.00656), DistAttention as in dist/dist.h. */
#ifndef INF_MODEL_FORWARD_H
#define INF_MODEL_FORWARD_H

#include "dist/dist.h"
#include "infinite/device.h"
#include "kernels/backend.h"
#include "model/sampling.h"
#include "model/weights.h"

typedef struct inf_forward inf_forward;

/* Everything is borrowed and outlives the inf_forward. */
typedef struct inf_forward_config {
    const inf_weights *weights;
    inf_backend *backend;
    inf_pool *threads; /* of the step, for what is done on the CPU */
    inf_dist *dist;
    inf_kv_shape kv;
    uint8_t *pool;          /* [num_blocks] KV blocks, the backend's memory */
    const float *inv_freq;  /* [ropes, rotary_dim / 2] */
    const int32_t *windows; /* [layers] */
    inf_slot *const *slots; /* [max_seqs] */
} inf_forward_config;

/* Allocates all memory that a step of the config's limits needs. */
int inf_forward_open(const inf_forward_config *config, inf_forward **out, inf_err *err);

/* Computes a validated step: KV appended, row_out and seq_out filled. Allocates nothing. INF_EIO
 * when the device itself failed: nothing of the step counts, and nothing that comes after will
 * work. */
int inf_forward_step(inf_forward *forward, const inf_step_buffers *step, inf_err *err);

/* What the device itself must know of a slot; the arguments are checked, the slot is in no step. */
int inf_forward_slot_open(inf_forward *forward, uint32_t slot, const inf_sampling *sampling,
                          const int32_t *tokens, int64_t n_tokens, int64_t n_prompt,
                          const int32_t *bias_ids, const float *bias, int32_t n_bias, inf_err *err);

void inf_forward_close(inf_forward *forward);

/* The factor of q.k. Home and creditors must use the same one. */
float inf_attention_scale(const inf_device_config *config);

#endif
