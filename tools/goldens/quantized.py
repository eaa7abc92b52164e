#!/usr/bin/env python3
"""Writes the small models in 4 bits and their reference answers in engine/model/testdata/quantized.

Needs torch, transformers and safetensors. The matrices of random models are rounded to 4 bits and packed by the
formulas of each format, written here once more and apart from the engine; the references are transformers' answers in
float32 with the weights scale * (q - zero). testdata/README.md describes the files.

    python tools/goldens/quantized.py [--out DIR] [--only NAME ...]
"""

import argparse
import base64
import importlib.util
import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path = [p for p in sys.path if Path(p).resolve() != HERE]  # its tokenizers.py is not the package

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

spec = importlib.util.spec_from_file_location("models", HERE / "models.py")
models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(models)
CLEAR, EAGER, F32, VOCAB, greedy, logits_of = (
    models.CLEAR, models.EAGER, models.F32, models.VOCAB, models.greedy, models.logits_of)

BASE = dict(
    vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
)
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
F16, BF16 = torch.float16, torch.bfloat16


def cases():
    """name -> (config, format, group size or -1, symmetric, dtype of the scales)."""
    llama = LlamaConfig(**BASE)
    return {
        "awq-128": (llama, "awq", 128, False, F16),
        "awq-64-qwen2": (Qwen2Config(**BASE), "awq", 64, False, F16),
        "awq-32": (llama, "awq", 32, False, BF16),
        "gptq-64-symmetric": (llama, "gptq", 64, True, F16),
        "gptq-32": (llama, "gptq", 32, False, F16),
        "gptq-channel-v2": (llama, "gptq_v2", -1, False, F16),
        "compressed-128-symmetric": (llama, "compressed", 128, True, BF16),
        "compressed-32": (llama, "compressed", 32, False, F16),
        "compressed-channel": (llama, "compressed", -1, True, BF16),
    }


def words(numbers, dim):
    """Eight numbers along a dimension to a word of 32 bits, the first in the lowest bits."""
    n = numbers.long().movedim(dim, -1).unflatten(-1, (-1, 8))
    packed = sum(n[..., i] << (4 * i) for i in range(8))
    packed = torch.where(packed >= 2**31, packed - 2**32, packed)
    return packed.movedim(-1, dim).to(torch.int32).contiguous()


def rounded(w, group, symmetric, dtype, zeros):
    """q and zero of 4 bits, [n, groups, group] and [n, groups], and the scales; `zeros` bounds the zeros."""
    w = w.unflatten(1, (-1, w.shape[1] if group == -1 else group))
    low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
    if symmetric:
        scale = torch.maximum(-low, high) / 7.5
        zero = torch.full_like(scale, 8)
    else:
        scale = (high - low) / 15
        zero = (-low / scale).round().clamp(*zeros)
    scale = scale.to(dtype)
    q = (w / scale.float()[..., None] + zero[..., None]).round().clamp(0, 15)
    return q, zero, scale


def pack(form, name, w, group, symmetric, dtype):
    """The tensors of a matrix [n, k], and what they stand for."""
    # The zeros of GPTQ's first format are one less in the file, where 15 has no lower neighbour but 16.
    q, zero, scale = rounded(w, group, symmetric, dtype, (1, 16) if form == "gptq" else (0, 15))
    exact = ((q - zero[..., None]) * scale.float()[..., None]).flatten(1)
    q = q.flatten(1)
    if form == "awq":
        order = torch.tensor(AWQ_ORDER)
        swap = lambda x: x.unflatten(1, (-1, 8))[:, :, order].flatten(1)
        return exact, {f"{name}.qweight": words(swap(q.T), 1), f"{name}.qzeros": words(swap(zero.T), 1),
                       f"{name}.scales": scale.T.contiguous()}
    if form == "compressed":
        tensors = {f"{name}.weight_packed": words(q, 1), f"{name}.weight_scale": scale.contiguous(),
                   f"{name}.weight_shape": torch.tensor(w.shape, dtype=torch.int64)}
        if not symmetric:
            tensors[f"{name}.weight_zero_point"] = words(zero, 0)
        return exact, tensors
    less = 1 if form == "gptq" else 0
    size = w.shape[1] if group == -1 else group
    return exact, {f"{name}.qweight": words(q.T, 0), f"{name}.qzeros": words(zero.T - less, 1),
                   f"{name}.scales": scale.T.contiguous(),
                   f"{name}.g_idx": (torch.arange(w.shape[1]) // size).to(torch.int32),
                   f"{name}.bias": torch.zeros(w.shape[0], dtype=F16)}


def settings(form, group, symmetric):
    if form == "awq":
        return dict(quant_method="awq", bits=4, group_size=group, zero_point=True, version="gemm")
    if form == "compressed":
        weights = dict(num_bits=4, type="int", symmetric=symmetric, strategy="channel" if group == -1 else "group",
                       group_size=None if group == -1 else group, actorder=None, dynamic=False)
        return dict(quant_method="compressed-tensors", format="pack-quantized", quantization_status="compressed",
                    kv_cache_scheme=None, ignore=["lm_head"],
                    config_groups=dict(group_0=dict(targets=["Linear"], weights=weights, input_activations=None,
                                                    output_activations=None)))
    return dict(quant_method="gptq", bits=4, group_size=group, sym=symmetric, desc_act=False, checkpoint_format=form)


@torch.no_grad()
def attempt(name, case, seed, out):
    config, form, group, symmetric, dtype = case
    model = AutoModelForCausalLM.from_config(config, dtype=F32, **EAGER).eval()
    gen = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=gen)
        base = key.removesuffix(".weight")
        if "_proj" in key and p.dim() == 2:
            exact, packed = pack(form, base, noise * (0.2 if "q_proj" in key or "k_proj" in key else 0.1), group, symmetric, dtype)
            p.copy_(exact)
            has_bias = config.model_type == "qwen2" and base.split(".")[-1] in ("q_proj", "k_proj", "v_proj")
            tensors.update({k: v for k, v in packed.items() if not (has_bias and k.endswith(".bias"))})
            continue
        value = 1 + 0.1 * noise if "norm" in key else 0.3 * noise if key.endswith("bias") else 0.2 * noise
        tensors[key] = value.to(F16)
        p.copy_(tensors[key].float())
    prompt = torch.randint(3, VOCAB, (90,), generator=gen).tolist()
    answer, top, gap = greedy(model, prompt)
    logits = logits_of(model, prompt)
    positions = [0, 1, 30, 45, 88, 89]
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    c = json.loads(config.to_json_string(use_diff=False))
    c = {k: v for k, v in c.items() if k in LlamaConfig().to_dict() and v is not None}
    c.update(architectures=[type(model).__name__], model_type=config.model_type, dtype="float16",
             quantization_config=settings(form, group, symmetric))
    (folder / "config.json").write_text(json.dumps(c, indent=2, sort_keys=True) + "\n")
    golden = {
        "transformers": transformers.__version__, "seed": seed, "prompt": prompt, "positions": positions,
        "logits": base64.b64encode(logits[positions].numpy().astype("<f4").tobytes()).decode(),
        "greedy": answer, "top": top, "min_gap": round(gap, 6),
    }
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in golden.items())
    (folder / "golden.json").write_text("{\n" + lines + "\n}\n")
    return gap > CLEAR and len(set(answer)) >= 8, f"gap {gap:.4f} distinct {len(set(answer))} largest {logits.abs().max():.2f}"


def main():
    here = HERE.parents[1]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=here / "engine" / "model" / "testdata" / "quantized")
    parser.add_argument("--only", nargs="*", help="names of the models to write")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
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
