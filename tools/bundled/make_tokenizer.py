"""Makes the byte-level BPE tokenizer from generated text and writes it with its chat template."""

import argparse
import json
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import data
import words as w

# The pre-tokenizer pattern of Llama 3.
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
           r"\s*[\r\n]+|\s+(?!\S)|\s+")
ENGLISH = """the of and to in is you that it he was for on are as with his they at be this have from or one had by
word but not what all were we when your can said there use an each which she do how their if will up other about out
many then them these so some her would make like him into time has look two more write go see number no way could
people my than first water been call who oil its now find long down day did get come made may part hello thanks
please yes why where answer question text know think good new old great little own under last right place""".split()


def corpus(seed, documents):
    rng = random.Random(seed)
    for _ in range(documents):
        yield "".join(text for text, _ in data.document(rng, 512))
    names = [v for v in vars(w).values() if isinstance(v, list)]
    for word in sorted({word for words in names for word in words} | set(ENGLISH)):
        # One pre-token each: after a space, at a line's start, after a hyphen.
        yield f" {word} {word} {word}\n" * 60
    for word in w.NOUNS:
        yield f"-{word}\n" * 120
    for word in w.NAMES:
        yield f"\n{word}" * 120


def build(seed, vocab):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
    ])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=data.SPECIAL, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tok.train_from_iterator(corpus(seed, 400), trainer)
    return tok


def write(tok, folder, max_length):
    folder.mkdir(parents=True, exist_ok=True)
    tok.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": data.BOS,
        "eos_token": data.EOT,
        "pad_token": data.EOT,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": data.CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def check(tok, folder):
    """Round trip of any text, and the chat template against `data.render`."""
    from transformers import AutoTokenizer

    for text in ("Grüße, 東京! \U0001f680\n\n  tabs\t and 12345 numbers.", "The password of Mira is copper-lantern."):
        if tok.decode(tok.encode(text).ids) != text:
            raise SystemExit(f"cannot round-trip {text!r}")
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Where?"}]
    auto = AutoTokenizer.from_pretrained(folder)
    for generate in (True, False):
        text = auto.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        if text != data.render(messages, generate):
            raise SystemExit(f"the chat template disagrees with data.render: {text!r}")


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--vocab", type=int, default=2048)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--max-length", type=int, default=16384)
    args = ap.parse_args()
    tok = build(args.seed, args.vocab)
    write(tok, args.out, args.max_length)
    check(tok, args.out)
    lists = {k: v for k, v in vars(w).items() if isinstance(v, list)}
    for name, words in lists.items():
        lead = "" if name == "NUMBERS" else " "
        single = sum(len(tok.encode(lead + word).ids) == 1 for word in words)
        print(f"{name}: {single} of {len(words)} words are one token")
    print("vocabulary", tok.get_vocab_size())


if __name__ == "__main__":
    main()
