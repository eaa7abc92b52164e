"""Writes sample_prompt.json (a chat request of about 3,000 tokens) and sample_answer.txt, and checks with
transformers that the model answers it, and that transformers and model.py agree on the logits."""

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer

import data
import prompts
from model import load


def make(tok, seed, limit):
    """The request body and the expected value, of a fact in the first tenth and a half of the prompt."""
    _, text, asked, _ = prompts.make_prompt(tok, seed, limit, 20, 0.6)
    fact = next(f for f, depth in asked if 0.05 < depth < 0.15 and "password" in f.prefix)
    user = {"role": "user", "content": f"{text}\n\n{fact.questions[0]}"}
    return {"messages": [user], "max_tokens": 32, "temperature": 0}, fact


def find(tok, limit):
    """The first seed whose early facts include a password."""
    for seed in range(100_000, 101_000):
        try:
            return make(tok, seed, limit)
        except StopIteration:
            continue
    raise RuntimeError("cannot find a seed with an early password")


def check(folder, body, fact):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tok = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = tok.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tok(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        ours = load(folder)
        hidden, _ = ours.hidden(ids, torch.arange(ids.shape[1])[None])
        gap = (ours.logits(hidden) - theirs(ids).logits).abs().max().item()
        out = theirs.generate(ids, max_new_tokens=32, do_sample=False)[0, ids.shape[1]:]
    answer = tok.decode(out)
    print(f"{ids.shape[1]} tokens, largest difference of logits {gap:.2e}, answer {answer!r}")
    if gap > 1e-2 or answer != fact.sentence + data.EOT:
        raise SystemExit(f"cannot accept the model: expected {fact.sentence!r}")


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--model", type=Path, required=True)
    ap.add_argument("--tokens", type=int, default=3000)
    args = ap.parse_args()
    body, fact = find(Tokenizer.from_file(str(args.model / "tokenizer.json")), args.tokens)
    (args.model / "sample_prompt.json").write_text(json.dumps(body, indent=1) + "\n")
    (args.model / "sample_answer.txt").write_text(fact.value + "\n")
    check(args.model, body, fact)


if __name__ == "__main__":
    main()
