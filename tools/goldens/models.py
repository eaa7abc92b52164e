#!/usr/bin/env python3
"""Writes the small models and the reference answers in engine/model/testdata.

Needs torch and transformers. The models are random, seeded and tiny; every supported architecture and rope scaling
has one. Weights are drawn wide, so that attention is peaked and a fault in it changes the answer, and a seed is
taken only if the greedy answer is clear of ties and depends on distant tokens, on rope and on the window. The
references are computed by transformers in float32, from the saved folder, with weights widened from what the file
holds. testdata/README.md describes the files.

    python tools/goldens/models.py [--out DIR] [--only NAME ...]
"""

import argparse
import base64
import copy
import json
import shutil
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GenerationConfig, GraniteConfig, LlamaConfig, MistralConfig,
    MixtralConfig, Olmo2Config, Olmo3Config, Phi3Config, Qwen2Config, Qwen2MoeConfig, Qwen3Config, Qwen3MoeConfig,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

VOCAB = 256
STEPS = 64
TOP = 5
CLEAR = 0.02  # least gap between the best and the second logit of a greedy step
CLEAR_ROUTE = 1e-3  # .. and between the router's logits of the last expert that is taken and the first that is not

BASE = dict(
    vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
)
EAGER = dict(attn_implementation="eager", experts_implementation="eager")
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def cases():
    """name -> (config, dtype of the file, length of the prompt, extra: v4 keys, shards, generation defaults)."""

    def llama(**kw):
        return LlamaConfig(**{**BASE, "head_dim": 16, **kw})

    llama3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=64)
    yarn = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64)
    linear = dict(rope_type="linear", rope_theta=5000.0, factor=4.0)
    qwen = dict(BASE, bos_token_id=None, eos_token_id=[2, 3])
    sampling = dict(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05, do_sample=True)
    return {
        "llama": (llama(tie_word_embeddings=True), F32, 120, {}),
        "llama-llama3": (llama(rope_parameters=llama3), BF16, 160, {}),
        "llama-linear": (llama(rope_parameters=linear), F16, 150, {"v4": True}),
        "llama-yarn": (llama(rope_parameters=yarn), BF16, 200, {}),
        "llama-headdim": (llama(num_key_value_heads=4, head_dim=24), F16, 97, {}),
        "llama-mqa": (llama(num_key_value_heads=1), BF16, 128, {"v4": True}),
        "mistral": (MistralConfig(**BASE, sliding_window=24), BF16, 131, {"shard": "100KB"}),
        "qwen2": (Qwen2Config(**qwen, tie_word_embeddings=True), BF16, 144, {"generation": sampling}),
        "qwen2-window": (
            Qwen2Config(**{**qwen, "num_hidden_layers": 3}, tie_word_embeddings=True, use_sliding_window=True,
                        sliding_window=24, max_window_layers=1), F16, 110, {}),
        "qwen3": (Qwen3Config(**qwen, head_dim=32), F16, 133, {"generation": sampling}),
        "mixtral": (
            MixtralConfig(**{**BASE, "intermediate_size": 24}, num_local_experts=6, num_experts_per_tok=2), BF16, 127, {}),
        "qwen2-moe": (
            Qwen2MoeConfig(**qwen, num_experts=5, num_experts_per_tok=3, mlp_only_layers=[1], moe_intermediate_size=24,
                           shared_expert_intermediate_size=40), BF16, 139, {"generation": sampling}),
        "qwen3-moe": (
            Qwen3MoeConfig(**qwen, head_dim=32, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=16,
                           norm_topk_prob=True), F16, 121, {}),
        "gemma2": (
            Gemma2Config(**BASE, head_dim=32, pad_token_id=0, query_pre_attn_scalar=24, sliding_window=24,
                         attn_logit_softcapping=4.0, final_logit_softcapping=8.0), BF16, 118, {}),
        "gemma3": (
            Gemma3TextConfig(**{**BASE, "num_hidden_layers": 3}, head_dim=32, pad_token_id=0, query_pre_attn_scalar=24,
                             sliding_window=24, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                             rope_parameters={"full_attention": dict(linear, rope_theta=50000.0, factor=8.0),
                                              "sliding_attention": dict(rope_type="default", rope_theta=100.0)}),
            F16, 135, {}),
        "olmo2": (Olmo2Config(**BASE, pad_token_id=0), BF16, 123, {}),
        "olmo3": (
            Olmo3Config(**{**BASE, "num_hidden_layers": 4}, pad_token_id=0, sliding_window=24,
                        rope_parameters={"full_attention": yarn, "sliding_attention": dict(rope_type="default", rope_theta=10000.0)}),
            F16, 141, {}),
        "phi3": (
            Phi3Config(**BASE, pad_token_id=0, original_max_position_embeddings=64, rope_parameters=dict(
                rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.5, short_factor=[1.0, 1.1, 1.3, 1.7],
                long_factor=[1.05, 1.6, 3.5, 7.0])), BF16, 154, {}),
        "granite": (
            GraniteConfig(**BASE, embedding_multiplier=1.5, residual_multiplier=0.6,
                          attention_multiplier=0.4, logits_scaling=1.3), BF16, 129, {}),
    }


def spread(name):
    """Standard deviation of a matrix: attention scores get about 2.5, its output outweighs the embedding."""
    for part, std in (("mlp.gate.", 0.25), ("shared_expert_gate", 0.15), ("experts.down_proj", 0.2), ("embed_tokens", 0.5), ("lm_head", 0.35), ("q_proj", 0.2), ("k_proj", 0.2), ("v_proj", 0.2),
                      ("o_proj", 0.2), ("gate_proj", 0.15), ("up_proj", 0.15), ("down_proj", 0.1)):
        if part in name:
            return std
    raise ValueError(f"cannot tell the spread of {name}")


def make(config, seed):
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=F32, **EAGER)
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=gen)
            offset = 1.0 if config.model_type.startswith("gemma") and "norm" in name else 0.0  # they have 1 + weight
            if name.endswith("bias"):
                p.copy_(0.5 * noise)
            elif offset and name == "model.norm.weight":
                p.copy_(3.0 + 0.3 * noise)
            elif config.model_type.startswith("gemma") and "embed_tokens" in name:
                p.copy_(0.12 * noise)  # it is multiplied by 8, and is the head too
            elif "layernorm" in name and "post_" in name and hasattr(model.model.layers[0], "post_feedforward_layernorm"):
                p.copy_((4.0 if offset else 1.5) - offset + 0.3 * noise)  # what layers add outweighs the embedding
            elif "q_norm" in name or "k_norm" in name:
                p.copy_(1.6 - offset + 0.3 * noise)
            elif "norm" in name:
                p.copy_(1.0 - offset + 0.2 * noise)
            else:
                p.copy_(spread(name) * noise)
    return model, gen


def write(model, config, dtype, folder, extra):
    """Saves the folder and returns the model as transformers reads it back, in float32."""
    shutil.rmtree(folder, ignore_errors=True)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, **extra.get("generation", {}))
    model.to(dtype).save_pretrained(folder, max_shard_size=extra.get("shard", "1GB"))
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
    path = folder / "config.json"
    c = json.loads(path.read_text())
    if extra.get("v4"):  # the spelling of older transformers
        rope = c.pop("rope_parameters")
        c["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type")
        c["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
        c["torch_dtype"] = c.pop("dtype")
    path.write_text(json.dumps(c, indent=2, sort_keys=True) + "\n")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=F32, **EAGER).eval()


@torch.no_grad()
def logits_of(model, ids, **kw):
    return model(torch.tensor([ids]), use_cache=False, **kw).logits[0]


def greedy(model, prompt):
    """The answer, the top log probabilities of each step, and the least gap between first and second logit."""
    ids, top, gap = list(prompt), [], float("inf")
    for _ in range(STEPS):
        row = logits_of(model, ids)[-1].double()
        best = row.topk(TOP)
        gap = min(gap, (best.values[0] - best.values[1]).item())
        logprobs = row.log_softmax(-1)[best.indices]
        top.append({"ids": best.indices.tolist(), "logprobs": [round(x, 6) for x in logprobs.tolist()]})
        ids.append(best.indices[0].item())
    return ids[len(prompt):], top, gap


def plain(config):
    """The configuration without what makes the case special: rope scaling, window, caps and multipliers."""
    c = copy.deepcopy(config)
    default = {"rope_type": "default", "rope_theta": 10000.0}
    if "partial_rotary_factor" in c.rope_parameters:
        default["partial_rotary_factor"] = c.rope_parameters["partial_rotary_factor"]
    kinds = [kind for kind in ("full_attention", "sliding_attention") if kind in c.rope_parameters]
    c.rope_parameters = {kind: dict(default) for kind in kinds} or default
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if hasattr(c, key):
            setattr(c, key, None)
    for key in ("embedding_multiplier", "residual_multiplier", "logits_scaling"):
        if hasattr(c, key):
            setattr(c, key, 1.0)
    if getattr(c, "sliding_window", None):
        c.sliding_window = 10**6
    return c


def route_gap(model, ids):
    """The least gap that decides which experts a token has, None for a model without; and that model with other ones."""
    gaps, hooks, routers = [], [], [m for m in model.modules() if type(m).__name__.endswith("TopKRouter")]

    def look(router, _, out):
        ranked = out[0].double().sort(-1, descending=True).values
        gaps.append((ranked[:, router.top_k - 1] - ranked[:, router.top_k]).min().item())

    for router in routers:
        hooks.append(router.register_forward_hook(look))
    logits_of(model, ids)
    for hook in hooks:
        hook.remove()
    if not routers:
        return None, None
    other = copy.deepcopy(model)
    for module in other.modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.weight.data.neg_()
    return min(gaps), other


def control(model, other, ids, want):
    """Largest change of the last logits when a fault is put in: the far half unseen, or the special case ignored."""
    n = len(ids)
    reach = min(n, getattr(model.config, "sliding_window", None) or n)
    seen = torch.ones(1, n, dtype=torch.long)
    seen[0, : n - reach // 2] = 0
    positions = torch.arange(n)[None]
    far = logits_of(model, ids, attention_mask=seen, position_ids=positions)[-1]
    out = {"far_half_unseen": (far - want).abs().max().item()}
    if other is not None:
        out["special_case_ignored"] = (logits_of(other, ids)[-1] - want).abs().max().item()
    return out


def attempt(name, case, seed, out):
    config, dtype, length, extra = case
    model, gen = make(config, seed)
    prompt = torch.randint(3, VOCAB, (length,), generator=gen).tolist()
    folder = out / name
    model = write(model, config, dtype, folder, extra)
    answer, top, gap = greedy(model, prompt)
    logits = logits_of(model, prompt)
    other = None
    if plain(config).to_dict() != config.to_dict():
        other = AutoModelForCausalLM.from_config(plain(config), dtype=F32, **EAGER).eval()
        other.load_state_dict(model.state_dict())
    faults = control(model, other, prompt, logits[-1])
    route, misled = route_gap(model, prompt + answer)
    if misled is not None:
        faults["other_experts"] = (logits_of(misled, prompt)[-1] - logits[-1]).abs().max().item()
    wide = logits_of(copy.deepcopy(model).double(), prompt)
    noise = (wide - logits).abs().max().item()
    good = gap > CLEAR and len(set(answer)) >= 16 and min(faults.values()) > 1.0
    good = good and (route is None or route > CLEAR_ROUTE)
    positions = [0, 1, 30, length // 2, length - 2, length - 1]
    golden = {
        "transformers": transformers.__version__, "seed": seed, "prompt": prompt, "positions": positions,
        "logits": base64.b64encode(logits[positions].numpy().astype("<f4").tobytes()).decode(),
        "greedy": answer, "top": top, "min_gap": round(gap, 6), "float32_noise": noise,
        "controls": {k: round(v, 4) for k, v in faults.items()},
    }
    if route is not None:
        golden["route_gap"] = round(route, 6)
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in golden.items())
    (folder / "golden.json").write_text("{\n" + lines + "\n}\n")
    return good, f"gap {gap:.4f} distinct {len(set(answer))} noise {noise:.1e} controls {golden['controls']}"


def rope_cases():
    def yarn(**kw):
        return dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32768, **kw)

    shape = dict(hidden_size=4096, num_attention_heads=32, max_position_embeddings=131072)
    small = dict(hidden_size=64, num_attention_heads=4, max_position_embeddings=512)
    llama3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=8192)
    return {
        "default": (shape, dict(rope_type="default", rope_theta=10000.0)),
        "default, theta 5e5, head_dim 80": (dict(shape, head_dim=80), dict(rope_type="default", rope_theta=5e5)),
        "default, theta 1e7": (small, dict(rope_type="default", rope_theta=1e7)),
        "linear": (shape, dict(rope_type="linear", rope_theta=10000.0, factor=2.5)),
        "llama3": (shape, llama3),
        "llama3, factor 32": (dict(shape, head_dim=64), dict(llama3, factor=32.0)),
        "llama3, small": (small, dict(llama3, rope_theta=10000.0, original_max_position_embeddings=64)),
        "yarn": (shape, yarn()),
        "yarn, attention_factor": (shape, yarn(attention_factor=0.75)),
        "yarn, mscale": (shape, yarn(mscale=0.707, mscale_all_dim=1.0)),
        "yarn, mscale alone": (shape, yarn(mscale=0.707)),
        "yarn, betas": (shape, yarn(beta_fast=16.0, beta_slow=2.0)),
        "yarn, not truncated": (shape, yarn(truncate=False)),
        "yarn, short original": (small, dict(yarn(), original_max_position_embeddings=4)),
        "yarn, factor null": (shape, dict(yarn(), factor=None)),
        "yarn, no original": (shape, {k: v for k, v in yarn().items() if not k.startswith("original")}),
    }


def write_rope(path):
    rows = []
    for name, (shape, rope) in rope_cases().items():
        row = {"name": name, "config": {
            "architectures": ["LlamaForCausalLM"], "vocab_size": 256, "intermediate_size": 64, "num_hidden_layers": 1,
            **shape, "rope_parameters": rope}}
        table = LlamaRotaryEmbedding(LlamaConfig(**shape, rope_parameters=dict(rope)))
        row["inv_freq"] = table.inv_freq.double().tolist()
        row["attention_factor"] = float(table.attention_scaling)
        rows.append(json.dumps(row))
    for name, length in (("longrope, long", 8192), ("longrope, short", 4096)):
        shape = dict(hidden_size=3072, num_attention_heads=24, max_position_embeddings=131072,
                     original_max_position_embeddings=4096)
        rope = dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75,
                    short_factor=[1 + i / 100 for i in range(48)], long_factor=[1.05 ** i for i in range(48)])
        inv_freq, factor = ROPE_INIT_FUNCTIONS["longrope"](Phi3Config(**shape, rope_parameters=dict(rope)), seq_len=length)
        rows.append(json.dumps({"name": name, "limit": length, "config": {
            "architectures": ["Phi3ForCausalLM"], "vocab_size": 256, "intermediate_size": 64, "num_hidden_layers": 1,
            **shape, "rope_parameters": rope}, "inv_freq": inv_freq.double().tolist(), "attention_factor": float(factor)}))
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n")


def main():
    here = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=here / "engine" / "model" / "testdata")
    parser.add_argument("--only", nargs="*", help="names of the models to write")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    write_rope(args.out / "rope.json")
    for number, (name, case) in enumerate(cases().items()):
        if args.only and name not in args.only:
            continue
        for seed in range(1000 * number + 1, 1000 * number + 60):
            good, report = attempt(name, case, seed, args.out)
            print(name, seed, report, "taken" if good else "refused", flush=True)
            if good:
                break
        else:
            raise SystemExit(f"cannot find a seed for {name}")


if __name__ == "__main__":
    main()
