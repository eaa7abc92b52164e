"""Trains the bundled model from seeded, generated text. See README.md for the recipe and the figures.

The context grows stage by stage. From the start, position ids jump at sentence ends (after PoSE, arXiv 2309.10400), so
that short sequences show the distances of long ones; the last stages have genuine long sequences, whose many
distractors are what the jumps cannot show.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import data
from model import Llama, Shape, save

# (tokens, sequences per step, most steps, first and last learning rate, share of values right that ends the stage)
STAGES = ((128, 32, 400, 1e-3, 1e-3, 0.97), (256, 16, 400, 1e-3, 1e-3, 0.98), (512, 8, 300, 1e-3, 1e-3, 0.98),
          (1024, 4, 300, 1e-3, 1e-3, 0.98), (2048, 2, 300, 1e-3, 1e-3, 0.985), (4096, 1, 200, 8e-4, 8e-4, 0.985),
          (8192, 1, 240, 6e-4, 3e-5, 2.0))
REACH = 9000  # the longest distance that the position jumps show


def encode(tok, pieces):
    """Token ids and loss weights; a token has the weight of the character it ends with."""
    text = "".join(p for p, _ in pieces)
    char = np.repeat(np.array([x for _, x in pieces], np.float32), [len(p) for p, _ in pieces])
    enc = tok.encode(text, add_special_tokens=False)
    ends = np.array([end for _, end in enc.offsets], np.int64)
    return np.array(enc.ids, np.int64), char[np.maximum(ends - 1, 0)]


def sequence(tok, rng, tokens):
    """One row of exactly tokens + 1 ids: whole documents back to back, the last one cut."""
    ids, weights, have = [], [], 0
    while have < tokens + 1:
        i, x = encode(tok, data.document(rng, tokens if have == 0 else tokens + 1 - have))
        if have and tokens + 1 - have < 64:
            i, x = np.full(64, i[0]), np.zeros(64, np.float32)
        ids.append(i)
        weights.append(x)
        have += len(i)
    return np.concatenate(ids)[: tokens + 1], np.concatenate(weights)[: tokens + 1]


def jumps(rng, ids, stop, tokens):
    """Positions that skip ahead at some sentence ends, to a total length of up to REACH."""
    pos = np.arange(tokens)
    if tokens >= REACH or rng.random() < 0.15:
        return pos
    slack = int(math.exp(rng.uniform(math.log(tokens), math.log(REACH)))) - tokens
    ends = np.flatnonzero(ids[:tokens] == stop)
    if slack <= 0 or len(ends) == 0:
        return pos
    count = rng.randint(1, 6)
    for _ in range(count):
        at = ends[rng.randrange(len(ends))]
        pos[at + 1:] += int(slack * rng.random() * 2 / (count + 1))
    return pos


def batch(tok, rng, tokens, rows, stop):
    ids, weights, pos = [], [], []
    for _ in range(rows):
        i, x = sequence(tok, rng, tokens)
        ids.append(i)
        weights.append(x)
        pos.append(jumps(rng, i, stop, tokens))
    ids, weights = torch.from_numpy(np.stack(ids)), torch.from_numpy(np.stack(weights))
    return ids[:, :-1], ids[:, 1:], weights[:, 1:], torch.from_numpy(np.stack(pos))


def loss_of(model, x, y, weight, pos, gen):
    """Weighted cross entropy; of the light tokens only a sample is scored, to spare work in the output head.
    Returns (loss, share of value tokens predicted right)."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h, _ = model.hidden(x, pos)
        keep = (weight > 0.1) | (torch.rand(weight.shape, generator=gen) < 0.1) & (weight > 0)
        logits = model.logits(h[keep])
    y, weight = y[keep], weight[keep]
    each = F.cross_entropy(logits.float(), y, reduction="none")
    value = weight == data.W_VALUE
    right = (logits[value].argmax(-1) == y[value]).float().mean()
    return (each * weight).sum() / weight.sum(), right.item()


def orthogonal(g):
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix (the step of Muon)."""
    x = g.to(torch.bfloat16)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal, for weight matrices (Jordan et al., 2024)."""

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                g = p.grad.lerp(m, group["momentum"])
                p.mul_(1 - group["lr"] * 0.01)
                p.add_(orthogonal(g), alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def optimizers(model, use_muon):
    """Matrices of the layers by Muon (lr 4 times Adam's), the rest by AdamW."""
    mats = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    if not use_muon:
        return [(torch.optim.AdamW(mats + rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02), 1.0)]
    return [(Muon(mats, lr=1e-2), 4.0),
            (torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0), 1.0)]


def train(args):
    torch.set_num_threads(args.threads)
    tok = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    bos, eos, stop = (tok.token_to_id(t) for t in (data.BOS, data.EOT, "."))
    model = Llama(Shape(vocab=tok.get_vocab_size(), layers=args.layers)).init(args.seed)
    if args.resume:
        model.load_state_dict(torch.load(args.resume))
    opts = optimizers(model, args.muon)
    stages = json.loads(args.stages) if args.stages else STAGES
    done = 0
    for number, (tokens, rows, steps, high, low, enough) in enumerate(stages):
        rng = random.Random(args.seed * 1000 + number)
        gen = torch.Generator().manual_seed(args.seed * 1000 + number)
        start, seen = time.time(), []
        for step in range(steps):
            lr = high + (low - high) * step / max(1, steps)
            lr *= min(1.0, (done + 1) / 50, (step + 1) / 20)
            loss, right = loss_of(model, *batch(tok, rng, tokens, rows, stop), gen)
            for opt, _ in opts:
                opt.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt, factor in opts:
                for group in opt.param_groups:
                    group["lr"] = lr * factor
                opt.step()
            done += 1
            seen.append((loss.item(), right))
            if (step + 1) % args.log == 0 or step + 1 == steps:
                mean = np.mean(seen, axis=0)
                print(f"stage {tokens} step {step + 1}/{steps} loss {mean[0]:.4f} values right {mean[1]:.4f} "
                      f"lr {lr:.1e} s/step {(time.time() - start) / (step + 1):.3f}", flush=True)
                seen = []
                torch.save(model.state_dict(), args.checkpoint)
                if mean[1] >= enough:
                    break
        torch.save(model.state_dict(), f"{args.checkpoint}.{tokens}")
        save(model, args.out, bos, eos)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--out", type=Path, required=True, help="folder that holds tokenizer.json; the model goes there")
    ap.add_argument("--checkpoint", type=Path, default=Path("bundled.pt"))
    ap.add_argument("--resume", type=Path)
    ap.add_argument("--stages", help="JSON list of [tokens, rows, steps, first lr, last lr, enough] instead of STAGES")
    ap.add_argument("--layers", type=int, default=3)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--log", type=int, default=50)
    ap.add_argument("--muon", action=argparse.BooleanOptionalAction, default=True)
    train(ap.parse_args())


if __name__ == "__main__":
    main()
