#!/usr/bin/env python3
"""Writes engine/tokenizer/classes.txt and the hashes of engine/tokenizer/testdata/unicode.json.

Needs the tokenizers library, which is the reference. Its parts follow different versions of Unicode, none of which need
be Go's, so the classes of characters that its patterns and normalizers know are asked of it, for every character. The
hashes are of what its normalizers and pre-tokenizers do with every character that is assigned.

    python tools/goldens/unicode.py
"""

import sys
from pathlib import Path

sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]  # tokenizers.py is ours

import hashlib
import json

from tokenizers import Regex, normalizers, pre_tokenizers

ROOT = Path(__file__).resolve().parents[2]
CHARS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
HASHED = [ch for ch in CHARS if ch < "\U00040000" or "\U000E0000" <= ch < "\U000E1000"]  # elsewhere none is assigned


def matches(pattern):
    """The characters that a class of the pattern engine holds."""
    cut = pre_tokenizers.Split(Regex(f"{pattern}+"), "removed", invert=True)
    return {ch for token, _ in cut.pre_tokenize_str("".join(CHARS)) for ch in token}


def isolated(cut):
    """The characters that a pre-tokenizer cuts off from a letter."""
    return {token for token, _ in cut.pre_tokenize_str("a".join(CHARS)) if len(token) == 1 and token != "a"}


def words():
    """The characters of \\w in the Whitespace pre-tokenizer and in single_word."""
    tokens = pre_tokenizers.Whitespace().pre_tokenize_str("\n".join("a" + ch for ch in CHARS))
    return {token[1] for token, _ in tokens if len(token) == 2 and token[0] == "a"}


def ranges(chars):
    out = []
    for c in sorted(map(ord, chars)):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def lowered():
    """Lower cases that are newer than this interpreter's: runs of characters and how far off they are."""
    lower = normalizers.Lowercase()
    out = []
    for ch in CHARS:
        low = lower.normalize_str(ch)
        if low == ch.lower() or len(low) != 1:
            continue
        c, delta = ord(ch), ord(low) - ord(ch)
        if out and out[-1][1] == c - 1 and out[-1][2] == delta:
            out[-1][1] = c
        else:
            out.append([c, c, delta])
    return out


def hashed(parts):
    h = hashlib.sha256()
    for part in parts:
        h.update(part.encode() + b"\n")
    return h.hexdigest()


def normalized(normalizer):
    """Every character alone, and between marks, which it may change places or be joined with."""
    return hashed(normalizer.normalize_str(s) for ch in HASHED for s in (ch, "e\u0345" + ch, ch + "\u0334\u0301"))


def main():
    strip_accents = normalizers.StripAccents()
    classes = {
        "letter": matches(r"\p{L}"), "number": matches(r"\p{N}"), "digit": matches(r"\d"),
        "word": words(), "numeric": isolated(pre_tokenizers.Digits(True)),
        "punct": isolated(pre_tokenizers.Punctuation()),
        "mark": {ch for ch in CHARS if strip_accents.normalize_str(ch) == ""},
    }
    lines = ["# Written by tools/goldens/unicode.py: classes of characters, and lower cases newer than Unicode 14."]
    for name, chars in classes.items():
        lines.append(name)
        line = ""
        for first, last in ranges(chars):
            item = f"{first:x}" if first == last else f"{first:x}-{last:x}"
            if len(line) + len(item) > 110:
                lines.append(" " + line)
                line = ""
            line += " " + item
        lines.append(" " + line)
    lines.append("lower")
    lines += [f"  {first:x}-{last:x}:{delta}" for first, last, delta in lowered()]
    (ROOT / "engine/tokenizer/classes.txt").write_text("\n".join(lines) + "\n")
    hashes = {name: normalized(getattr(normalizers, name)()) for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase",
        "StripAccents", "Strip")}
    cuts = {
        "Whitespace": pre_tokenizers.Whitespace(), "WhitespaceSplit": pre_tokenizers.WhitespaceSplit(),
        "Punctuation": pre_tokenizers.Punctuation(),
        "Digits": pre_tokenizers.Digits(True), "ByteLevel": pre_tokenizers.ByteLevel(add_prefix_space=False),
    }
    for name, cut in cuts.items():
        hashes[name] = hashed(token for ch in HASHED for token, _ in cut.pre_tokenize_str("a" + ch + " " + ch + "1"))
    (ROOT / "engine/tokenizer/testdata/unicode.json").write_text(json.dumps(hashes, indent=2) + "\n")
    print({name: len(chars) for name, chars in classes.items()})


if __name__ == "__main__":
    main()
