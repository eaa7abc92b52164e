"""A compact Llama in PyTorch for training, with the weight names of transformers' LlamaForCausalLM.

Shapes: ids and positions [batch, tokens], hidden [batch, tokens, hidden], q [batch, heads, tokens, head_dim],
k and v [batch, kv_heads, tokens, head_dim]. RoPE turns the two halves of head_dim against each other, as in
transformers' rotate_half.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    vocab: int = 2048
    hidden: int = 256
    intermediate: int = 512
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    theta: float = 1e8
    eps: float = 1e-5
    max_length: int = 16384

    @property
    def head_dim(self):
        return self.hidden // self.heads


def rope(positions, shape):
    """cos and sin [batch, 1, tokens, head_dim / 2] in float32."""
    half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angle = positions[:, None, :, None].float() * (shape.theta ** -half)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def frame(n, gen):
    """A random orthogonal matrix [n, n]."""
    return torch.linalg.qr(torch.randn(n, n, generator=gen))[0]


class Attention(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.q_proj = nn.Linear(s.hidden, s.heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.hidden, bias=False)

    def forward(self, x, cos, sin, cache=None):
        """`cache` is (k, v) of earlier tokens or None; returns (out, (k, v)). With a cache of length > 0 the new
        tokens see all of it and each other causally."""
        b, t, _ = x.shape
        s = self.s
        q = rotate(self.q_proj(x).view(b, t, s.heads, s.head_dim).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(b, t, s.kv_heads, s.head_dim).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(b, t, s.kv_heads, s.head_dim).transpose(1, 2)
        past = 0
        if cache is not None:
            past = cache[0].shape[2]
            k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)
        kept = (k, v)
        group = s.heads // s.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        if past == 0:
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            seen = torch.ones(t, past + t, dtype=torch.bool).tril(past)
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.o_proj(o.transpose(1, 2).reshape(b, t, -1)), kept


class MLP(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden, s.intermediate, bias=False)
        self.up_proj = nn.Linear(s.hidden, s.intermediate, bias=False)
        self.down_proj = nn.Linear(s.intermediate, s.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(s.hidden, eps=s.eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = nn.RMSNorm(s.hidden, eps=s.eps)
        self.mlp = MLP(s)

    def forward(self, x, cos, sin, cache=None):
        o, kept = self.self_attn(self.input_layernorm(x), cos, sin, cache)
        x = x + o
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class Body(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab, s.hidden)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.hidden, eps=s.eps)


class Llama(nn.Module):
    """Tied embeddings: the output head is embed_tokens transposed."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.model = Body(shape)

    def init(self, seed):
        gen = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                fan = self.shape.hidden if "embed" in name else p.shape[1]
                deep = (2 * self.shape.layers) ** 0.5 if "o_proj" in name else 1.0
                deep = 10.0 if "down_proj" in name else deep
                p.data.normal_(0.0, fan**-0.5 / deep, generator=gen)
        self.init_recent(gen)
        self.init_lookup(gen)
        return self

    @torch.no_grad()
    def init_recent(self, gen, pairs=8, constant=0.5, gain=0.85):
        """Starts the first layer's heads as attention to the tokens 1, 2, 3, ... places back, which saves the steps
        it takes to find that out. Embedding 0 is a constant; q and k draw from it a fixed vector in the `pairs`
        fastest RoPE pairs, q turned back by the head's distance, so that the score peaks there. Each head's output
        goes to directions of its own."""
        s = self.shape
        d, half = s.head_dim, s.head_dim // 2
        self.model.embed_tokens.weight[:, 0] = constant
        attn = self.model.layers[0].self_attn
        attn.q_proj.weight.mul_(0.2)
        attn.k_proj.weight.mul_(0.2)
        freq = s.theta ** -(torch.arange(pairs).float() / half)
        for head in range(s.heads):
            q = attn.q_proj.weight[head * d : (head + 1) * d]
            q[:pairs, 0] = gain * (-(head + 1) * freq).cos()
            q[half : half + pairs, 0] = gain * (-(head + 1) * freq).sin()
        for head in range(s.kv_heads):
            k = attn.k_proj.weight[head * d : (head + 1) * d]
            k[:pairs, 0] = gain
            k[half : half + pairs, 0] = 0.0
        attn.v_proj.weight.copy_(frame(s.hidden, gen)[: s.kv_heads * d])
        attn.v_proj.weight[:, 0] = 0.0  # the constant tells nothing
        attn.o_proj.weight.copy_(0.3 * frame(s.hidden, gen))

    @torch.no_grad()
    def init_lookup(self, gen, slow=16, gain=2.0, copy=0.5):
        """Starts the second layer's heads as a lookup: what the last token and the third last are here (heads 0 and
        2 of the first layer) against what the second and fourth last are there (heads 1 and 3), so that of all
        places the one after the same subject and attribute scores best. The match uses the slowest RoPE pairs alone,
        so it does not depend on the distance. The values start as a copy of the token there."""
        s = self.shape
        d, half = s.head_dim, s.head_dim // 2
        first, attn = self.model.layers[0].self_attn, self.model.layers[1].self_attn
        away = [first.o_proj.weight[:, h * d : (h + 1) * d] / 0.3 for h in range(4)]
        slots = torch.cat((torch.arange(half - slow, half), torch.arange(d - slow, d)))
        attn.q_proj.weight.mul_(0.2)
        attn.k_proj.weight.mul_(0.2)
        values = frame(s.hidden, gen)[: s.kv_heads * d]
        attn.v_proj.weight.copy_(values)
        group = s.heads // s.kv_heads
        for head in range(s.kv_heads):
            name, kind = frame(d, gen)[:slow], frame(d, gen)[:slow]
            here = gain * torch.cat((name @ away[0].T, kind @ away[2].T))
            there = gain * torch.cat((name @ away[1].T, kind @ away[3].T))
            attn.k_proj.weight[head * d + slots] += there
            for h in range(head * group, (head + 1) * group):
                attn.q_proj.weight[h * d + slots] += here
                attn.o_proj.weight[:, h * d : (h + 1) * d] = copy * values[head * d : (head + 1) * d].T

    def hidden(self, ids, positions, caches=None):
        """Normed final hidden states and the new caches, one (k, v) per layer."""
        x = self.model.embed_tokens(ids)
        cos, sin = rope(positions, self.shape)
        kept = []
        for i, layer in enumerate(self.model.layers):
            x, kv = layer(x, cos, sin, caches[i] if caches else None)
            kept.append(kv)
        return self.model.norm(x), kept

    def logits(self, hidden):
        return F.linear(hidden, self.model.embed_tokens.weight)


def hf_config(s, bos, eos):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "vocab_size": s.vocab, "hidden_size": s.hidden, "intermediate_size": s.intermediate,
        "num_hidden_layers": s.layers, "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_dim, "rms_norm_eps": s.eps, "rope_theta": s.theta, "rope_scaling": None,
        "max_position_embeddings": s.max_length, "hidden_act": "silu", "attention_bias": False,
        "mlp_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": True, "initializer_range": 0.02,
        "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos, "use_cache": True,
    }


def save(model, folder, bos, eos):
    """Writes config.json, generation_config.json and model.safetensors (bfloat16)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(hf_config(model.shape, bos, eos), indent=2) + "\n")
    gen = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos, "do_sample": False, "temperature": 0.0}
    (folder / "generation_config.json").write_text(json.dumps(gen, indent=2) + "\n")


def load(folder):
    """The model of a Hugging Face folder, weights widened to float32."""
    from safetensors.torch import load_file

    c = json.loads((Path(folder) / "config.json").read_text())
    shape = Shape(c["vocab_size"], c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"],
                  c["num_attention_heads"], c["num_key_value_heads"], c["rope_theta"], c["rms_norm_eps"],
                  c["max_position_embeddings"])
    model = Llama(shape)
    model.load_state_dict({k: v.float() for k, v in load_file(str(Path(folder) / "model.safetensors")).items()})
    return model.eval()
