"""Measures how often the bundled model answers a question about one fact in a long prompt.

Each prompt is one user message in the chat template: a passage of facts and filler, then one question. The asked facts
are (subject, attribute, value) triples that training text never holds, in passages of seeds training never draws; their
depth is spread evenly over the prompt. An answer counts when greedy decoding yields the fact's whole sentence and then
the end-of-turn token. The prompts of one passage share its prefill; each question starts from that state alone. The
answer is checked in one pass: the most likely token at each place, given the right ones before it, is the right one
exactly when greedy decoding from the prompt yields the whole answer.
"""

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer

import data
from model import load
from prompts import make_prompt


@torch.no_grad()
def run_passage(model, tok, seed, limit, questions, density):
    """[(depth, right, prompt tokens, expected, got)] for the questions on one passage."""
    head, text, asked, rng = make_prompt(tok, seed, limit, questions, density)
    encode = lambda t: tok.encode(t, add_special_tokens=False).ids  # noqa: E731
    shared = data.render(head + [{"role": "user", "content": text + "\n\n"}], generate=False)
    prefix = encode(shared[: -len(data.EOT)])
    _, caches = model.hidden(torch.tensor([prefix]), torch.arange(len(prefix))[None])
    rows = []
    for fact, depth in asked:
        question = data.ask(rng, fact)
        whole = data.render(head + [{"role": "user", "content": text + "\n\n" + question}])
        prompt = encode(whole)
        if prompt[: len(prefix)] != prefix or len(prompt) > limit:
            raise RuntimeError("cannot share the prefill: the prompt's tokens differ from the passage's")
        answer = encode(fact.sentence) + [tok.token_to_id(data.EOT)]
        tail = prompt[len(prefix):] + answer[:-1]
        pos = torch.arange(len(prefix), len(prefix) + len(tail))[None]
        hidden, _ = model.hidden(torch.tensor([tail]), pos, caches)
        best = model.logits(hidden[0, -len(answer):]).argmax(-1).tolist()
        rows.append((depth, best == answer, len(prompt), fact.sentence, tok.decode(best)))
    return rows


def measure(model, tok, limit, passages, questions, first_seed, show):
    rows = []
    for i in range(passages):
        rows += run_passage(model, tok, first_seed + i, limit, questions, (1.0, 0.8, 0.6, 0.4)[i % 4])
    tenths = [[r[1] for r in rows if int(r[0] * 10) == d] for d in range(10)]
    for r in [r for r in rows if not r[1]][:show]:
        print(f"  wrong at depth {r[0]:.2f}: expected {r[3]!r}, most likely tokens {r[4]!r}")
    return {"limit": limit, "prompts": len(rows), "tokens_min": min(r[2] for r in rows),
            "tokens_max": max(r[2] for r in rows), "accuracy": sum(r[1] for r in rows) / len(rows),
            "by_depth_tenth": [round(sum(t) / len(t), 3) if t else None for t in tenths]}


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--model", type=Path, required=True)
    ap.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    ap.add_argument("--passages", type=int, default=20)
    ap.add_argument("--questions", type=int, default=20, help="single-question prompts per passage")
    ap.add_argument("--first-seed", type=int, default=0)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--show", type=int, default=0, help="how many wrong answers to print")
    ap.add_argument("--json", type=Path, help="write the figures here")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    model, tok = load(args.model), Tokenizer.from_file(str(args.model / "tokenizer.json"))
    results = []
    for limit in args.lengths:
        r = measure(model, tok, limit, args.passages, args.questions, args.first_seed, args.show)
        results.append(r)
        print(f"{limit} tokens: {r['accuracy']:.4f} of {r['prompts']} prompts "
              f"({r['tokens_min']} to {r['tokens_max']} tokens), by depth tenth {r['by_depth_tenth']}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
