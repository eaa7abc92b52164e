#!/usr/bin/env python3
"""Writes the small tokenizers and the reference encodings in engine/tokenizer/testdata.

Needs the tokenizers library, version 0.22, which is the reference. Every form that the engine supports is trained here
on the text below; the engine must give the same ids and the same decoded text for every string of the corpus.
testdata/README.md describes the files.

    python tools/goldens/tokenizers.py [--out DIR] [--random N] [--share N] [--seed N] [--only FORM ...]
"""

import sys
from pathlib import Path

sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]  # our name is theirs

import argparse
import base64
import gzip
import json
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

TEXT = """The quick brown fox jumps over the lazy dog. It's a dog's life, isn't it? They're here; we've seen I'll go.
In 1984 there were 1,234,567 books and 3.14159 pies, at 10:30 on 2024-01-31.
def main():\n    for i in range(10):\n        print("hello, world", i)\n\n    return 0\n
{"key": [1, 2, 3], "name": "value", "nested": {"a": null}}
Größe, Füße, naïve café, coöperate, señor, Łódź, İstanbul, ΑΒΓ αβγ δοκιμή, Привет мир, как дела, дела идут.
東京は日本の首都です。今日はいい天気ですね。 你好，世界。我们今天去公园。 안녕하세요 세계 한국어.
السلام عليكم ورحمة الله وبركاته. שלום עולם. नमस्ते दुनिया हिन्दी में. ไทยภาษา สวัสดี
emoji 😀😀 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 ❤️ and symbols ©®™ ∑∏√∞ ½⅓ Ⅷ ²³ ﬁ ﬂ ㍿ Å Ω
the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not
what all were we when your can said there use an each which she do how their if will up other about out many then
""" * 2

FRAGMENTS = """a|b|the|The| the|dog|ing|'s|'S|'ſ|'t|'RE|'re|'Ve|'m|'LL|'lL|'d|'D|'x|'|''|’s|don't|CAN'T| |  |   |      |\t|
\t\t|\n|\n\n|\r\n|\r\n\r\n|\r|\x0b|\x0c|\x85|\xa0|\u2003|\u2028|\u3000|\u200b|\ufeff|\x00|\x01|\x1c|\x1f|\x7f|\x80|0|1|12|123|1234|
12345678|3.14|½|²|Ⅷ|٣|٤٥|१२|①|é|e\u0301|e\u0301\u0323|\u0301|ñ|n\u0303|ß|ẞ|ſ|İ|ı|ﬁ|ﬀ|㍿|Å|Å|ẛ̣|각|각|각|가|中|中文字|東京|日本語|ば|は\u3099|カ\u3099|한국어|
ملك|لسلام|ـ|שָׁ|हिन्दी|क्ष|ไทย|😀|👍🏽|👩‍👩‍👧‍👦|🏳️‍🌈|🇩🇪|❤️|\u200d|\ufe0f|\U0001f3fd|𝔘𝔫𝔦|𐐷|𠀀|\U0010ffff|\ue000|\ufffd|
.|,|!|?|...|-|--|_|__|#|##|@|$|%|&|*|()|[]|{}|<|>|</|/>|\\|/|"|`|```|~|^|+|=|==|!=|;|:|://|▁|▁▁|▁the|Ġ|Ġthe|Ċ|Ā|
<s>|</s>|<unk>|<0x41>|<0x0A>|<0xE4>|<|endoftext|>|<|eot|>|<tool_call>|[X]|[XY]|[XYZ]|[L]|[R]|[B]|[W]|Foo|foo|FOO|ab cd|hello world|
x"""

FIXED = [
    "", " ", "  ", "\n", "a", "Hello, world!", "  leading and trailing  ", "a\n\n\nb", "a \n b", "a  \n\n  b", "\r\n\r\nx", "\t\tx\ty",
    "It's it'S IT'S it'ſ 'ſ we'LL we'll WE'lL they'Re I'VE i'd I'D 'twas ''s 's's",
    "1234567890 12 345 6789 ½²Ⅷ ٣٤٥ १२३ 1a2b3c", "x" * 300, "ab" * 700, "the" * 400, " " * 100, "\n" * 50, "中" * 200, "😀" * 60,
    "a" + " " * 33 + "b", "e" + "\u0301" * 40 + "x", "e" + "\u0323\u0301" * 20 + "n\u0303", "\u0301" * 35, "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷",
    "\x7f\x7fa\x7f", "".join(map(chr, range(0, 256))), "日本語 と English を混ぜる。１２３", "السلام عليكم 123 مرحبا",
    "<s>hi</s>", "<s> hi </s>", " <s>", "<s><s></s></s>", "x<|endoftext|>y", "<|endoftext|><|endoftext|>", "<|endoftext|", "<|eot|> <|eot|>",
    "[X][XY][XYZ][X", "a [L] b", "a   [L]   [L]b", "a [R] b", "a[R]   [R]  b", " [B] [B] ", "[W] a[W] [W]b [W]", "x[W]x [W].", "foo Foo FOO",
    "ab cd ab  cd ABCD", "hello world hello  world", "▁▁a▁b ▁", "▁", " ▁", "Ġthe Ċ", "<0x41><0x0A>", "ｆｕｌｌ　ｗｉｄｔｈ", "ﬁ ﬂ ㍿ Å Ω ẛ̣",
    "각 각 가 가", "İstanbul ISTANBUL ß ẞ ΑΣ", "a\u200db\ufeffc\u2028d\u2029e\x85f\xa0g\u3000h", "def f(x):\n    return x**2  # comment\n\n\n\nclass A: pass\n",
    "https://example.org/a?b=c&d=%20#e", "....!!!???---", "\ufffd\ufffd", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐐷 𠀀 \U0010ffff \ue000",
]

INVALID = [
    b"\xff", b"a\x80b", b"\xc3", b"\xc3(", b"\xe4\xb8", b"\xe4\xb8x", b"\xf0\x9f\x98", b"\xf0\x9f\x98\xf0\x9f\x98\x80", b"\xed\xa0\x80",
    b"\xed\xa0\x80\xed\xb0\x80", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"ok \xe2\x82 \xe2\x82\xac \xe2",
    b"\xf0\x80\x80\x41", b"\xf1\x80\x80", b"\xfe\xfe\xff\xff", b"<s>\xff</s>", b"\x00\xff\x7f\x80",
]


def corpus(seed, count):
    """Fixed strings, invalid bytes, and `count` random strings, as bytes."""
    rng = random.Random(seed)
    fragments = [f.strip("\n") if f != "\n" else f for f in FRAGMENTS.replace("|\n", "|").split("|")]
    fragments += ["<|endoftext|>", "<|eot|>", "\n", "\n\n", "|"]
    out = [s.encode() for s in FIXED] + INVALID
    while len(out) < len(FIXED) + len(INVALID) + count:
        n = rng.choice((1, 2, 2, 3, 3, 4, 5, 6, 8, 12))
        kind = rng.random()
        if kind < 0.75:
            s = "".join(rng.choice(fragments) for _ in range(n)).encode()
        elif kind < 0.9:
            s = "".join(chr(rng.choice((rng.randrange(0x20, 0x180), rng.randrange(0x300, 0xD7FF), rng.randrange(0xE000, 0x1FFFF))))
                        for _ in range(n)).encode()
        else:
            s = "".join(rng.choice(fragments) for _ in range(n)).encode()
            cut = rng.randrange(len(s) + 1)
            s = s[:cut] + rng.choice((bytes([rng.randrange(128, 256)]), b"")) + s[cut + rng.randrange(2):]
        out.append(s)
    return out


def special(text, **kw):
    return AddedToken(text, special=True, normalized=False, **kw)


def byte_level(pattern, size, specials, normalizer=None, prefix=False, **model):
    """Byte-level BPE. pattern None: the GPT-2 form, with the pattern in the ByteLevel pre-tokenizer."""
    tok = Tokenizer(models.BPE(**model))
    if normalizer:
        tok.normalizer = normalizer
    if pattern:
        tok.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
    else:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tok.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    tok.add_tokens(specials)
    return tok


def gpt2():
    return byte_level(None, 700, [special("<|endoftext|>")])


def llama3():
    tok = byte_level(LLAMA3, 700, [special(t) for t in ("<|endoftext|>", "<|eot|>", "<s>")])
    state = json.loads(tok.to_str())
    # Pieces that merges cannot build: only ignore_merges finds them.
    for word in ("Ġquickbrown", "hello"):
        state["model"]["vocab"].setdefault(word, len(state["model"]["vocab"]))
    state["model"]["ignore_merges"] = True
    size = len(state["model"]["vocab"])
    for i, token in enumerate(state["added_tokens"]):
        token["id"] = size + i
    tok = Tokenizer.from_str(json.dumps(state))
    bos = tok.token_to_id("<s>")
    tok.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", bos)]),
    ])
    return tok


def qwen2():
    return byte_level(QWEN2, 700, [special("<|endoftext|>"), special("<|eot|>"), AddedToken("<tool_call>", normalized=False),
                                   AddedToken("</s>", normalized=False)], normalizer=normalizers.NFC())


def roberta():
    tok = byte_level(None, 600, [special("<s>"), special("</s>"), AddedToken("[L]", lstrip=True, normalized=False)], prefix=True)
    tok.post_processor = processors.RobertaProcessing(("</s>", tok.token_to_id("</s>")), ("<s>", tok.token_to_id("<s>")))
    return tok


def added():
    """Added tokens of every kind, beside, within and over one another."""
    return byte_level(None, 400, [
        AddedToken("[X]", normalized=False), AddedToken("[XY]", normalized=False), AddedToken("[XYZ]", normalized=True),
        AddedToken("[L]", lstrip=True, normalized=False), AddedToken("[R]", rstrip=True, normalized=False),
        AddedToken("[B]", lstrip=True, rstrip=True, normalized=True), AddedToken("[W]", single_word=True, normalized=False),
        AddedToken("foo", normalized=True), AddedToken("ab cd", normalized=False), AddedToken("Å", normalized=True),
        AddedToken("é", normalized=False), special("<s>"), special("</s>"), AddedToken("the", single_word=True, normalized=True),
        AddedToken("中文", normalized=False), AddedToken("  ", normalized=False), AddedToken("Ġthe", normalized=False),
    ], normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]))


def sentencepiece_bpe(size, byte_fallback=True, fuse_unk=True):
    """A BPE model in the order SentencePiece writes: <unk>, <s>, </s>, the bytes, the pieces."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = [c for c in sorted(set(TEXT)) if ord(c) < 0x250 and c not in "\n Łź"] + ["▁"]
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, limit_alphabet=len(alphabet), initial_alphabet=alphabet)
    tok.train_from_iterator(TEXT.splitlines(), trainer)
    model = json.loads(tok.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>"] + ([f"<0x{b:02X}>" for b in range(256)] if byte_fallback else [])
    pieces += sorted(model["vocab"], key=model["vocab"].get)
    vocab = {p: i for i, p in enumerate(pieces)}
    return Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m) for m in model["merges"]], unk_token="<unk>", fuse_unk=fuse_unk,
                                byte_fallback=byte_fallback))


def bos_processor(tok, eos=False):
    return processors.TemplateProcessing(
        single="<s> $A </s>" if eos else "<s> $A", pair="<s> $A <s>:1 $B:1",
        special_tokens=[("<s>", tok.token_to_id("<s>")), ("</s>", tok.token_to_id("</s>"))])


def llama2():
    tok = sentencepiece_bpe(700)
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.add_tokens([special("<unk>"), special("<s>"), special("</s>")])
    tok.post_processor = bos_processor(tok)
    return tok


def mistral():
    tok = sentencepiece_bpe(700)
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.add_tokens([special("<unk>"), special("<s>"), special("</s>"), AddedToken("[X]", normalized=False)])
    tok.post_processor = bos_processor(tok)
    return tok


def metaspace():
    """Without byte fallback: unknown characters become <unk>, each its own."""
    tok = sentencepiece_bpe(500, byte_fallback=False, fuse_unk=False)
    tok.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip(True, False)])
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tok.decoder = decoders.Metaspace(prepend_scheme="first")
    tok.add_tokens([special("<unk>"), special("<s>"), special("</s>")])
    tok.post_processor = bos_processor(tok, eos=True)
    return tok


def unigram(byte_fallback, normalizer):
    tok = Tokenizer(models.Unigram())
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<unk>", "<s>", "</s>"] + ([f"<0x{b:02X}>" for b in range(256)] if byte_fallback else [])
    trainer = trainers.UnigramTrainer(vocab_size=400 + len(names), special_tokens=names, unk_token="<unk>", show_progress=False,
                                      initial_alphabet=list("abcdefghijklmnopqrstuvwxyz"))
    lines = [line for line in TEXT.splitlines() if line.isascii() or not byte_fallback]
    tok.train_from_iterator(lines, trainer)
    state = json.loads(tok.to_str())
    state["model"]["byte_fallback"] = byte_fallback
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    tok = Tokenizer.from_str(json.dumps(state))
    tok.normalizer = normalizer
    tok.post_processor = bos_processor(tok, eos=True)
    return tok


def unigram_bytes():
    tok = unigram(True, normalizers.NFKC())
    tok.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tok


def unigram_plain():
    tok = unigram(False, normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.NFKD(),
                                               normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]))
    tok.decoder = decoders.Metaspace()
    return tok


def pieces():
    """The simple pre-tokenizers, affixes and no decoder."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##", end_of_word_suffix="</w>"))
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)])
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, special_tokens=["<unk>"], continuing_subword_prefix="##",
                                  end_of_word_suffix="</w>")
    tok.train_from_iterator(TEXT.splitlines(), trainer)
    return tok


def words():
    """More of the simple pre-tokenizers and the other split behaviors."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("-", "merged_with_previous"), pre_tokenizers.Split(".", "contiguous"), pre_tokenizers.Split("[", "merged_with_next"),
        pre_tokenizers.Split(Regex(r"\s+"), "removed"), pre_tokenizers.Digits(), pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Whitespace()])
    tok.train_from_iterator(TEXT.splitlines(), trainers.BpeTrainer(vocab_size=500, show_progress=False, special_tokens=["<unk>"]))
    tok.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("e", "É"), decoders.Strip("t", 2, 0)])
    return tok


def gemma():
    """Spaces become a piece and split in front of nothing: runs of them and of line ends are added tokens."""
    tok = sentencepiece_bpe(700)
    tok.normalizer = normalizers.Replace(" ", "▁")
    tok.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    runs = [AddedToken(c * n, normalized=False) for c in "\n▁\t" for n in range(2, 8)]
    tok.add_tokens([special("<unk>"), special("<s>"), special("</s>"), AddedToken("<b>", normalized=False),
                    AddedToken("the", normalized=True), *runs])
    tok.post_processor = bos_processor(tok)
    return tok


def phi3():
    """As llama2, with added tokens that take what space is behind them."""
    tok = llama2()
    tok.add_tokens([AddedToken("</s>", special=False, normalized=False, rstrip=True)])
    tok.add_tokens([special(t, rstrip=True) for t in ("<|endoftext|>", "<|eot|>", "[X]", "[XY]")])
    tok.add_tokens([special("[L]", lstrip=True), special("[B]", lstrip=True, rstrip=True)])
    return Tokenizer.from_str(tok.to_str())  # or what </s> was would live on in it


FORMS = [gpt2, llama3, qwen2, roberta, added, llama2, mistral, metaspace, unigram_bytes, unigram_plain, pieces, words, gemma,
         phi3]


def goldens(tok, texts, seed):
    """Encodings of the texts and decodings of random ids."""
    encodings = []
    for index, raw in texts:
        text = raw.decode("utf-8", "replace")
        plain, full = tok.encode(text, add_special_tokens=False).ids, tok.encode(text).ids
        skip, keep = tok.decode(full, skip_special_tokens=True), tok.decode(full, skip_special_tokens=False)
        encodings.append([index, plain, None if full == plain else full, None if skip == text else skip, None if keep == skip else keep])
    rng = random.Random(seed)
    size = tok.get_vocab_size()
    # Tokens of few characters, so that characters are often cut in two.
    small = [i for i in range(size) if len(tok.id_to_token(i) or "") == 1 or (tok.id_to_token(i) or "").startswith("<0x")] or list(range(size))
    lists = []
    for _ in range(150):
        ids = [rng.choice(small) if rng.random() < 0.7 else rng.randrange(size) for _ in range(rng.randrange(12))]
        lists.append([ids, tok.decode(ids, skip_special_tokens=True), tok.decode(ids, skip_special_tokens=False)])
    return {"encode": encodings, "decode": lists}


def write_gz(path, data):
    raw = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    path.write_bytes(gzip.compress(raw, 9, mtime=0))


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / "engine/tokenizer/testdata")
    ap.add_argument("--random", type=int, default=2400, help="random strings in the corpus")
    ap.add_argument("--share", type=int, default=3, help="each form is tested on one random string in so many")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--only", nargs="*", help="names of the forms to write")
    args = ap.parse_args()
    texts = corpus(args.seed, args.random)
    fixed = len(FIXED) + len(INVALID)
    args.out.mkdir(parents=True, exist_ok=True)
    write_gz(args.out / "corpus.json.gz", [base64.b64encode(t).decode() for t in texts])
    for number, form in enumerate(FORMS):
        if args.only and form.__name__ not in args.only:
            continue
        tok = form()
        folder = args.out / form.__name__
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(tok.to_str() + "\n", encoding="utf-8")
        chosen = [(i, t) for i, t in enumerate(texts) if i < fixed or i % args.share == number % args.share]
        write_gz(folder / "golden.json.gz", goldens(tok, chosen, args.seed))
        print(f"{form.__name__}: {tok.get_vocab_size()} pieces, {len(chosen)} strings")


if __name__ == "__main__":
    main()
