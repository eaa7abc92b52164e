#!/usr/bin/env python3
"""Writes the reference renderings in engine/tokenizer/jinja/testdata: small templates, fixed and random.

The fixed ones are in jinja_fixed.txt, one a line ("> " goes on with the line before), but for those of several lines,
which are below; the random ones are jinja_random.py's.

Needs the transformers library, whose compiled Jinja2 template is the reference.

    python tools/goldens/jinja.py [--out DIR] [--random N] [--seed N]
"""

import sys
from pathlib import Path

sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]  # tokenizers.py is ours

import argparse
import gzip
import json
import random
import warnings

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template

sys.path.append(str(Path(__file__).resolve().parent))  # behind the libraries
from jinja_random import Expressions, Templates

ROOT = Path(__file__).resolve().parents[2]

# Keys in order of the alphabet, in which the engine goes through its caller's maps.
VARS = {
    "d": {"a": 1, "b": [1, 2, {"c": "x"}], "copy": "key", "é": None},
    "deep": {"x": {"y": {"z": [0, "end"]}}},
    "e": [],
    "f": 2.5,
    "flag": True,
    "l": [3, 1, 2],
    "m": [{"content": "Hi", "n": 2, "role": "user"}, {"content": "Yo ", "n": 10, "role": "assistant"},
          {"content": "", "n": 1, "role": "User"}],
    "mixed": [1, "1", 1.5, None, True, [1], {"k": "v"}],
    "n": 7,
    "neg": -3,
    "no": None,
    "s": "Hello World",
    "t": " \tpad\u00a0\n",
    "u": "äÖß😀e\u0301中",
    "w": ["b", "A", "a", "B", "ß"],
    "z": "",
}

EXTRA = [  # templates of several lines, where the white space around tags matters
    "a\n{% if flag %}\nb\n{% endif %}\nc\n", "a\n  {% if flag %}\n  b\n  {% endif %}\nc\n\n",
    "{% for i in l %}\n{{ i }}\n{% endfor %}\n",
    "  {{ s }}\n  {# c #}\n  x\n", "  {# c #}  \n y", "x {# c #}\ny", "a\r\nb\r{% if flag %}\r\nc{% endif %}\r\n",
    "{%- if flag %}\n\n  a\n{%- endif %}\n\nb",
    "a\n\n{%- if flag -%}\n\n b \n\n{%- endif -%}\n\nc", "{% if flag %}{{ s }}\n{% endif %}\n\n\nz\n",
    "\t{% if flag %}\tq\t{% endif %}\t\n", "\u00a0{% if flag %}a{% endif %}",
    "a {% if flag %}\n{% endif %}b", "{{ s }}\n", "{{ s }}\n\n", "\n", "\n\n", "", " ",
    "  {%+ if flag %}\n x{% endif %}", "{% if flag +%}\nx{% endif %}", "{{ s -}}\n\n x",
    "  {% raw %}\n a {% endraw %}\n b", "{% raw -%}\n a\n{%- endraw %}\n b", "{# a\nb #}\nc", "{#- a -#}\n\nc",
    "x\n  {#- a #}\nc", "x\n  {#+ a +#}\nc",
    "{% set a %}\n  x\n{% endset %}\n[{{ a }}]", "{% macro f() %}\n  x\n{% endmacro %}\n[{{ f() }}]", "{{ 'a\nb' }}",
    "{{ 'a\\\nb' }}", "{{ 'a\r\nb' }}", "{{\n s\n}}\n",
    "{% for i in l -%}\n  {{ i }}\n{%- endfor %}",
    "{% for i in l %}{% if not loop.first %}\n{% endif %}{{ i }}{% endfor %}", "a{% if flag %} \n{% endif %}",
    "{% if flag %}\n{% if n %}\n{% if s %}\nx\n{% endif %}\n{% endif %}\n{% endif %}\n",
    "\x0b{% if flag %}\x1cx{%- endif %}", "{% if flag %}\u2028\nx{% endif %}",
    "{% if %}", "{% endif %}", "{% if flag %}", "{% for i in %}{% endfor %}", "{{ }}", "{{", "{%", "{#", "{% nope %}",
    "{{ s", "{{ s }", "{% raw %}", "{{ (1 }}", "{{ 1) }}",
    "{{ 'a }}", "{{ a b }}", "{{ 1 2 }}", "{{ . }}", "{{ a..b }}", "{{ a.'b' }}", "{{ |upper }}", "{{ a|nope }}",
    "{{ a is nope }}", "{{ a| }}", "{{ a is }}", "{{ 1 = 1 }}",
    "{% set %}", "{% set a %}", "{% set 1 = 2 %}", "{% set a.b.c = 2 %}", "{% set a[0] = 2 %}",
    "{% for a.b in l %}{% endfor %}", "{% for 1 in l %}{% endfor %}", "{% macro %}{% endmacro %}",
    "{% macro f(a=1, b) %}{% endmacro %}", "{% macro f(1) %}{% endmacro %}", "{% else %}",
    "{% if a %}{% else %}{% else %}{% endif %}", "{% if a %}{% endfor %}", "{{ f(a=1, 2) }}",
    "{{ f(a=1, a=2) }}", "{{ '\\x4' }}", "{{ '\\u12' }}", "{{ '\\' }}", "{{ @ }}", "{{ a ? b }}", "{{ a && b }}",
    "{{ ! a }}", "{% do l.append(1) %}", "{{ 1__0 }}", "{{ 012 }}", "{{ 1. }}",
    "{{ .5 }}", "{{ 1_ }}", "{{ 0x }}", "{{ a[1,2] }}", "{{ a[] }}", "{{ a[:] }}", "{{ l[:] }}{{ l[::] }}", "{{ not }}",
    "{{ a not b }}", "{{ x is not }}", "{{ {1} }}", "{{ {'a'} }}", "{{ [1 2] }}",
    "{% with a %}{% endwith %}", "{% continue %}", "{% if a %}{% elif %}{% endif %}", "{% for i in l if %}{% endfor %}",
    "{% set loop = 1 %}{{ loop }}", "{{ loop.index }}",
    "{% set ns = namespace() %}{% set ns.a, b = 1, 2 %}{{ ns.a }}{{ b }}",
]


def render(source):
    """[text], [null, what raise_exception said] or [null, null]: the template is wrong or fails."""
    try:
        return [_compile_jinja_template(source).render(**json.loads(json.dumps(VARS)))]
    except jinja2.exceptions.TemplateError as e:
        return [None, str(e) if type(e) is jinja2.exceptions.TemplateError else None]
    except Exception:  # a filter may fail in any way
        return [None, None]


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--out", type=Path, default=ROOT / "engine/tokenizer/jinja/testdata")
    ap.add_argument("--random", type=int, default=1500, help="random expressions, and as many templates")
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()
    warnings.simplefilter("ignore")
    lines = Path(__file__).with_name("jinja_fixed.txt").read_text(encoding="utf-8")
    fixed = lines.strip("\n").replace("\n> ", "").split("\n") + EXTRA
    rng = random.Random(args.seed)
    expressions = Expressions(rng)
    generated = ["{{ " + expressions.expr(rng.choice((1, 2, 2, 3, 3, 4))) + " }}" for _ in range(args.random)]
    templates = Templates(rng)
    generated += [templates.template() for _ in range(args.random)]
    cases = [[s, *render(s)] for s in generated]
    cases = [c for c in cases if " at 0x" not in (c[1] or "")]  # where something lies in memory
    data = {"vars": VARS, "fixed": [[s, *render(s)] for s in fixed], "random": cases}
    for kind in ("fixed", "random"):
        print(f"{kind}: {len(data[kind])} templates, {sum(c[1] is None for c in data[kind])} fail")
    args.out.mkdir(parents=True, exist_ok=True)
    raw = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    (args.out / "golden.json.gz").write_bytes(gzip.compress(raw, 9, mtime=0))


if __name__ == "__main__":
    main()
