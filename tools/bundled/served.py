"""Asks a running server what evaluate.py asks the model: how often it answers a question about one fact in a long prompt.

Needs a server with the bundled model, e.g. `bin/infinite serve --instances 3 --kv-cache-memory 6MiB`; instances whose
pools are smaller than a prompt show that the answer does not depend on where its KV lies. An answer counts when it is
the fact's whole sentence.
"""

import argparse
import json
import urllib.request
from pathlib import Path

from tokenizers import Tokenizer

import data
from prompts import make_prompt

FOLDER = Path(__file__).resolve().parents[2] / "engine" / "model" / "bundled"


def ask(url, messages):
    body = {"messages": messages, "temperature": 0, "max_tokens": 40}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as reply:
        got = json.load(reply)
    return got["choices"][0]["message"]["content"], got["usage"]["prompt_tokens"]


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("url", help="of the server, http://127.0.0.1:8000")
    ap.add_argument("--length", type=int, default=8192)
    ap.add_argument("--passages", type=int, default=4)
    ap.add_argument("--questions", type=int, default=10, help="prompts per passage")
    ap.add_argument("--first-seed", type=int, default=0)
    args = ap.parse_args()
    tok = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    right, sizes = [], []
    for i in range(args.passages):
        head, text, asked, rng = make_prompt(tok, args.first_seed + i, args.length, args.questions, (1.0, 0.8, 0.6, 0.4)[i % 4])
        for fact, depth in asked:
            answer, tokens = ask(args.url, head + [{"role": "user", "content": text + "\n\n" + data.ask(rng, fact)}])
            right.append(answer == fact.sentence)
            sizes.append(tokens)
            if not right[-1]:
                print(f"  wrong at depth {depth:.2f}: expected {fact.sentence!r}, got {answer!r}")
    print(f"{sum(right)} of {len(right)} right, {min(sizes)} to {max(sizes)} prompt tokens")


if __name__ == "__main__":
    main()
