#!/usr/bin/env python3
"""Writes the reference renderings in engine/tokenizer/jinja/testdata: small templates, fixed and random.

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

# One template a line; "> " goes on with the line before.
FIXED = r"""
{{ s }}|{{ n }}|{{ f }}|{{ flag }}|{{ no }}|{{ x }}|{{ l }}|{{ d }}|{{ m[0] }}|{{ mixed }}
{{ 1.0 }}|{{ 1e16 }}|{{ 1e15 }}|{{ 0.0001 }}|{{ 0.00001 }}|{{ 1e-7 }}|{{ 123456789.123 }}|{{ -0.0 }}|
> {{ 1e300 * 1e10 }}|{{ 5e-324 }}
{{ 0x1F }}|{{ 0b101 }}|{{ 0o17 }}|{{ 1_000 }}|{{ 1_0.5 }}|{{ 1E3 }}|{{ 00 }}
{{ 'a\nb\t\x41\u00e9\U0001f600\101\\\'\"' }}|{{ "it's" }}|{{ 'a' 'b' "c" }}|{{ '\q\ ' }}|{{ '\0' }}|
> {{ 'tab	in' }}
{{ ['it\'s', "q\"", 'b"\'', '\n\r\t\\', '\x00\x7f\u200b\U000e0001é😀'] }}
{{ (1,) }}|{{ () }}|{{ (1, 'a') }}|{{ 1, 2 }}|{{ [] }}|{{ {} }}|{{ {'a': (1, [2])} }}|
> {{ {1: 2, none: 3, true: 4} }}|{{ {1: 'a', 1.0: 'b', true: 'c'} }}
{{ s[0] }}|{{ s[-1] }}|{{ s[99] }}|{{ u[3] }}|{{ u[-1] }}|{{ u[1:4] }}|{{ u[::-1] }}|{{ s[::2] }}|
> {{ s[5:1:-1] }}|{{ s[-3:] }}|{{ s[:-3] }}|{{ s[2:2] }}
{{ l[0] }}|{{ l[-1] }}|{{ l[3] }}|{{ l[-4] }}|{{ l[1:] }}|{{ l[:1] }}|{{ l[::-1] }}|{{ l[-2:] }}|{{ l[10:] }}|
> {{ l[::-2] }}|{{ l[5:0:-1] }}|{{ l[true] }}|{{ l[1:none] }}
{{ e[0] }}|{{ e[-1] }}|{{ e[1:] }}|{{ [1][-1] }}|{{ m[-1].role }}|{{ m[-1]['n'] }}|{{ m[0:1] }}|
> {{ (1,2,3)[1:] }}|{{ l[:100:7] }}
{{ l['x'] }}|{{ l.x }}|{{ l.0 }}|{{ s.0 }}|{{ d.a }}|{{ d['a'] }}|{{ d.b.2.c }}|{{ d.zz }}|{{ d['zz'] }}|
> {{ d[1] }}|{{ n.x }}|{{ no.x }}|{{ n[0] }}
{{ d['copy'] }}|{{ d.é }}|{{ d['items'] is defined }}|{{ d.items is callable }}
{{ x.y }}
{{ x['y'] }}
{{ x[1:] }}
{{ no[1:] }}
{{ d[1:] }}
{{ x() }}
{{ no() }}
{{ s() }}
{{ x + 1 }}
{{ 1 + x }}
{{ 'a' + x }}
{{ x ~ 'a' ~ 1 ~ none ~ true ~ 1.5 ~ [1] }}
{{ -x }}
{{ x < 1 }}
{{ x == y }}|{{ x == none }}|{{ x != 1 }}|{{ x in l }}|{{ 1 in x }}|{{ not x }}|{{ x or 'b' }}|{{ x and 'b' }}
{{ x|length }}|{{ x|list }}|{{ x|join }}|{{ x|trim }}|{{ x|upper }}|{{ x|default('q') }}|{{ x|first }}|
> {{ x|last }}|{{ x|string }}|{{ x|items|list }}|{{ [x] }}|{{ x|sort }}|{{ x|sum }}
{{ x|tojson }}
{{ x|int }}
{{ x|float }}
{{ x|abs }}
{{ x|round }}
{{ x|reverse|list }}
{{ 7 // 2 }}|{{ -7 // 2 }}|{{ 7 // -2 }}|{{ -7 // -2 }}|{{ 7 % 3 }}|{{ -7 % 3 }}|{{ 7 % -3 }}|{{ -7 % -3 }}|
> {{ 7 / 2 }}|{{ 6 / 2 }}|{{ 7.5 // 2 }}|{{ -7.5 % 2 }}|{{ 5.0 // -3 }}|{{ 0.0 // -3 }}
{{ 2**3 }}|{{ 2**3**2 }}|{{ -2**2 }}|{{ 2**-1 }}|{{ 2.0**3 }}|{{ 4**0.5 }}|{{ 0**0 }}|{{ (-1)**5 }}|
> {{ (-8)**2 }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1 % 0 }}
{{ 1.0 / 0 }}
{{ 0 ** -1 }}
{{ true + true }}|{{ true * 3 }}|{{ -true }}|{{ +true }}|{{ true / 2 }}|{{ 1 == true }}|{{ 1.0 == 1 }}|
> {{ 'a' == 1 }}|{{ [1] == [1.0] }}|{{ (1,) == [1] }}|{{ {'a': 1} == {'a': true} }}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ [1] + (2,) }}
{{ none + 1 }}
{{ [1] + [2, 3] }}|{{ (1,) + (2,) }}|{{ 'ab' * 3 }}|{{ 3 * 'ab' }}|{{ [0] * 2 }}|{{ (1,2) * 2 }}|
> {{ 'a' * 0 }}|{{ 'a' * -1 }}|{{ 'a' * true }}
{{ 'a' * 'b' }}
{{ 'a' - 'b' }}
{{ 'a' * 1.0 }}
{{ 1 < 2 < 3 }}|{{ 1 < 3 < 2 }}|{{ 3 > 2 == true }}|{{ 1 == 1 == 1 }}|{{ 'a' < 'b' }}|{{ 'a' < 'B' }}|
> {{ [1, 2] < [1, 3] }}|{{ [1] < [1, 0] }}|{{ (1, 'a') < (1, 'b') }}|{{ true < 2 }}|{{ 1 <= 1.0 }}|
> {{ 'é' > 'z' }}|{{ '😀' > '\uffff' }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ [1] < ['a'] }}
{{ {} < {} }}
{{ 'ell' in s }}|{{ 'x' not in s }}|{{ 1 in l }}|{{ 9 in l }}|{{ 'a' in d }}|{{ 'zz' in d }}|{{ '' in '' }}|
> {{ 1.0 in l }}|{{ true in l }}|{{ [1] in mixed }}|{{ 2 in (1, 2) }}|{{ not 1 in l }}|{{ 1 in d.values() }}|
> {{ ('a', 1) in d.items() }}|{{ 'a' in d.keys() }}
{{ 1 in s }}
{{ none in s }}
{{ 1 in no }}
{{ 1 in 5 }}
{{ [1] in d }}
{{ not true }}|{{ not not 1 }}|{{ not '' }}|{{ not (1 == 2) }}|{{ 0 or 'a' }}|{{ '' or 0 or none }}|
> {{ 1 and 2 and 3 }}|{{ 1 and 0 and 3 }}|{{ (1 or 2) and 3 }}|{{ none or [] or {} }}
{{ 'a' if flag else 'b' }}|{{ 'a' if z else 'b' }}|{{ 'a' if z }}|{{ ('a' if z) is undefined }}|
> {{ 'a' if z else 'b' if e else 'c' }}|{{ ('x' if flag else 'y') + 'z' }}|{{ 'x' if flag else 'y' + 'z' }}|
> {{ [1 if flag else 2, 3] }}
{{ s|upper|lower|title|capitalize }}|{{ 'they\'re bill\'s (ok) a-b [c] <d>x'|title }}|
> {{ "they're bill's".title() }}|{{ 'hELLO wORLD'|capitalize }}|{{ 'ß'|upper }}|{{ 'ﬁx ŉ ǆ'|upper }}|
> {{ 'ﬁx ŉ ǆ'.title() }}|{{ 'ΑΣ ΑΣΑ Σ ΑΣ.'|lower }}|{{ 'İI'|lower }}|{{ 'ΟΔΟΣ'|capitalize }}|
> {{ 'ΟΔΟΣ ß'|title }}|{{ 'ß'.capitalize() }}|{{ 'ΑΣ ßx'.title() }}|{{ 'ŸſK'.lower() }}|
> {{ 'ſß'.casefold() }}
{{ t|trim }}|{{ t.strip() }}|{{ '\x1c\x1fa\x85\u2028\u200b'.strip() }}|{{ 'xxaxx'|trim('x') }}|
> {{ 'xyaxy'.strip('yx') }}|{{ 'xxa'.lstrip('x') }}|{{ 'axx'.rstrip('x') }}|{{ ' a '.lstrip() }}|
> {{ ' a '.rstrip() }}|{{ 'a'.strip(none) }}|{{ 'éaé'.strip('é') }}|{{ 5|trim }}|{{ 'abc'.strip('') }}
{{ 'a,b,,c'.split(',') }}|{{ ' a  b\tc\n'.split() }}|{{ 'a b c d'.split(' ', 2) }}|
> {{ 'a  b  c'.split(none, 1) }}|{{ 'a b c d'.rsplit(' ', 2) }}|{{ ' a  b  c '.rsplit(none, 1) }}|
> {{ ''.split() }}|{{ ''.split(',') }}|{{ 'abc'.split('b')[-1] }}|{{ 'a\u00a0b\x1cc'.split() }}|
> {{ 'aXbXc'.rsplit('X') }}|{{ 'a b'.split(maxsplit=0) }}|{{ 'a,b'.split(sep=',') }}|
> {{ ' a b '.split(' ', 0) }}|{{ 'a--b--c'.rsplit('--', 1) }}|{{ ' a b'.rsplit() }}
{{ 'a'.split('') }}
{{ 'a'.split(1) }}
{{ 'a\nb\r\nc\rd\x0be\x85f\u2028'.splitlines() }}|{{ 'a\n\nb\n'.splitlines(true) }}|{{ ''.splitlines() }}|
> {{ '\n'.splitlines() }}
{{ s.startswith('He') }}|{{ s.endswith('ld') }}|{{ s.startswith(('x', 'H')) }}|{{ s.endswith(()) }}|
> {{ s.startswith('') }}
{{ s.startswith(['H']) }}
{{ s.startswith(1) }}
{{ s.find('o') }}|{{ s.rfind('o') }}|{{ s.find('zz') }}|{{ u.find('e') }}|{{ u.index('中') }}|
> {{ u.rindex('中') }}|{{ s.count('l') }}|{{ s.count('') }}|{{ u.count('') }}
{{ s.index('zz') }}
{{ s.replace('l', 'L') }}|{{ s.replace('l', 'L', 1) }}|{{ s|replace('l', 'L') }}|{{ s|replace('l', 'L', 2) }}|
> {{ 'aaa'.replace('', '-') }}|{{ 'é中'.replace('', '-', 2) }}|{{ 12321|replace(2, 'x') }}|
> {{ s.replace('l', '', -1) }}|{{ s|replace('l', 'L', none) }}|{{ s|replace('l', x) }}
{{ s.replace('l') }}
{{ s|replace('l') }}
{{ s.replace(1, 2) }}
{{ ','.join(['a', 'b']) }}|{{ ''.join([]) }}|{{ '-'.join('abc') }}|{{ ','.join(d) }}|{{ l|join(', ') }}|
> {{ mixed|join('|') }}|{{ m|join(',', attribute='role') }}|{{ m|join(',', 'content') }}|{{ l|join }}|
> {{ 'abc'|join('.') }}|{{ d|join(',') }}|{{ l|join(d=0) }}
{{ ','.join([1]) }}
{{ no|join }}
{{ 'pre-x'.removeprefix('pre-') }}|{{ 'x.py'.removesuffix('.py') }}|{{ 'x'.removeprefix('y') }}|
> {{ 'a=b=c'.partition('=') }}|{{ 'a=b=c'.rpartition('=') }}|{{ 'abc'.partition('=') }}|
> {{ 'abc'.rpartition('=') }}
{{ 'abc'.isalpha() }}|{{ 'ab1'.isalnum() }}|{{ '12²'.isdigit() }}|{{ '12²'.isdecimal() }}|
> {{ ' \x1c'.isspace() }}|{{ ''.isspace() }}|{{ 'aB'.islower() }}|{{ 'ab1'.islower() }}|{{ 'AB1'.isupper() }}|
> {{ '1'.isupper() }}|{{ 'é'.isascii() }}|{{ 'a_1'.isidentifier() }}|{{ '٣½Ⅷ'.isalnum() }}|
> {{ 'ªᵃ'.islower() }}|{{ '①⑩'.isdigit() }}
{{ 'ab'.ljust(5) }}|{{ 'ab'.rjust(5, '.') }}|{{ 'ab'.center(5) }}|{{ 'abc'.center(6, '*') }}|
> {{ 'ab'|center(7) }}|{{ '-5'.zfill(5) }}|{{ '+5'.zfill(1) }}|{{ 'é'.zfill(3) }}|{{ 'a'.center(4) }}|
> {{ ''.center(3, 'é') }}|{{ 'x'|center }}
{{ s|length }}|{{ u|length }}|{{ l|count }}|{{ d|length }}|{{ (1,2)|length }}|{{ d.items()|length }}|
> {{ range(5)|length }}|{{ ''|length }}
{{ n|length }}
{{ no|length }}
{{ l|select|length }}
{{ l|first }}|{{ l|last }}|{{ s|first }}|{{ s|last }}|{{ u|last }}|{{ e|first }}|{{ e|last }}|{{ d|first }}|
> {{ d|last }}|{{ (1,2)|last }}|{{ range(3)|last }}|{{ range(3)|first }}|{{ l|select|first }}
{{ l|select|last }}
{{ l|sort }}|{{ l|sort(reverse=true) }}|{{ w|sort }}|{{ w|sort(true) }}|{{ w|sort(case_sensitive=true) }}|
> {{ m|sort(attribute='n')|map(attribute='n')|list }}|
> {{ m|sort(attribute='role,n')|map(attribute='n')|list }}|{{ [[2, 1], [1, 2]]|sort }}|
> {{ [true, 0, 2]|sort }}|{{ 'bca'|sort }}|{{ d|sort }}
{{ mixed|sort }}
{{ [x, x]|sort }}
{{ l|min }}|{{ l|max }}|{{ w|min }}|{{ w|max }}|{{ w|min(true) }}|{{ m|max(attribute='n') }}|{{ e|min }}|
> {{ 'hello'|max }}|{{ l|sum }}|{{ m|sum(attribute='n') }}|{{ l|sum(start=10) }}|{{ [1.5, 2]|sum }}|
> {{ e|sum }}|{{ [[1], [2]]|sum(start=[]) }}
{{ w|sum }}
{{ l|reverse|list }}|{{ s|reverse }}|{{ u|reverse }}|{{ d|reverse|list }}|{{ range(3)|reverse|list }}|
> {{ l|select|reverse|list }}
{{ n|reverse }}
{{ l|list }}|{{ 'abc'|list }}|{{ d|list }}|{{ d.items()|list }}|{{ d.values()|list }}|{{ (1,2)|list }}|
> {{ range(1, 10, 3)|list }}|{{ range(3, 0, -1)|list }}|{{ range(0)|list }}|{{ range(5, 1)|list }}
{{ range() }}
{{ range(1, 2, 0) }}
{{ range('a') }}
{{ range(1.5) }}
{{ range(100000)|length }}
{{ range(100001)|length }}
{{ n|list }}
{{ w|unique|list }}|{{ w|unique(true)|list }}|{{ [1, 1.0, true, '1']|unique|list }}|
> {{ m|unique(attribute='role')|map(attribute='n')|list }}
{{ [[1], [1]]|unique|list }}
{{ m|map(attribute='role')|list }}|{{ m|map('length')|list }}|{{ w|map('upper')|join }}|
> {{ m|map(attribute='zz', default='q')|list }}|{{ l|map('string')|list }}|
> {{ w|map('replace', 'a', 'x')|list }}|{{ m|map(attribute='content.0')|list }}|
> {{ [[1, 2]]|map(attribute=1)|list }}|{{ [[1, 2]]|map(attribute='1')|list }}|{{ w|map('default', 'x')|list }}
{{ l|map|list }}
{{ l|map('nope')|list }}
{{ l|map(attribute='a', x=1)|list }}
{{ m|selectattr('role', 'equalto', 'user')|list|length }}|
> {{ m|selectattr('role', '==', 'user')|map(attribute='n')|list }}|
> {{ m|rejectattr('role', 'equalto', 'user')|map(attribute='n')|list }}|
> {{ m|selectattr('content')|list|length }}|{{ m|selectattr('zz')|list }}|
> {{ m|selectattr('zz', 'undefined')|list|length }}|{{ l|select('odd')|list }}|{{ l|reject('odd')|list }}|
> {{ l|select('>', 1)|list }}|{{ l|select('in', [1, 2])|list }}|{{ mixed|select|list }}|
> {{ mixed|reject|list }}|{{ mixed|select('string')|list }}|{{ x|select|list }}|{{ e|select|list }}
{{ l|select('nope')|list }}
{{ m|selectattr|list }}
{% set g = l|select %}{{ g is iterable }}{{ g is sequence }}{{ g|list }}{{ g|list }}{{ g|first }}|
> {{ 'y' if g else 'n' }}
{% set g = l|map('string') %}{{ '1' in g }}{{ g|list }}
{{ d|dictsort }}|{{ {'b': 1, 'A': 2}|dictsort }}|{{ {'b': 1, 'A': 2}|dictsort(true) }}|
> {{ {'b': 1, 'A': 2}|dictsort(false, 'value') }}|{{ {'b': 1, 'A': 2}|dictsort(reverse=true) }}
{{ l|dictsort }}
{{ {'b': 1}|dictsort(by='x') }}
{{ d|items|list }}|{{ {}|items|list }}
{{ l|items|list }}
{{ [1,2,3,4,5]|batch(2)|list }}|{{ [1,2,3]|batch(2, 'x')|list }}|{{ [1,2,3,4,5,6,7]|slice(3)|list }}|
> {{ [1,2,3,4]|slice(3, 'x')|list }}
{{ m|groupby('role') }}
{% for g, items in m|groupby('n') %}{{ g }}:{{ items|length }},{% endfor %}
{{ 'a\nb\n\nc'|indent }}|{{ 'a\nb\n\nc'|indent(2, true) }}|{{ 'a\nb\n\nc'|indent(2, blank=true) }}|
> {{ 'a\nb'|indent('> ', true) }}|{{ 'a\n'|indent }}|{{ ''|indent(2, true) }}|{{ 'a\x0bb\r\nc'|indent(1) }}
{{ 5|indent }}
{{ '42'|int }}|{{ ' 42 '|int }}|{{ '4.9'|int }}|{{ '-4.9'|int }}|{{ 'x'|int }}|{{ 'x'|int(5) }}|
> {{ 3.99|int }}|{{ -3.99|int }}|{{ true|int }}|{{ none|int }}|{{ '1_000'|int }}|{{ '1e3'|int }}|{{ ''|int }}|
> {{ [1]|int }}|{{ 'inf'|int }}|{{ '0x10'|int }}|{{ '+7'|int }}
{{ '4.5'|float }}|{{ 'x'|float }}|{{ 'x'|float(1) }}|{{ 5|float }}|{{ '1e3'|float }}|{{ ' 1_0.5 '|float }}|
> {{ 'inf'|float }}|{{ '-Infinity'|float }}|{{ 'nan'|float }}|{{ true|float }}|{{ none|float }}|
> {{ '0x10'|float }}|{{ '1__0'|float }}
{{ -5|abs }}|{{ (-5)|abs }}|{{ (-5.5)|abs }}|{{ true|abs }}|{{ 2.5|round }}|{{ 3.5|round }}|
> {{ 2.675|round(2) }}|{{ 42.55|round(1, 'floor') }}|{{ 42.55|round(1, 'ceil') }}|{{ 7|round }}|
> {{ 7|round(2) }}|{{ -0.4|round }}|{{ 1.5|round|int }}
{{ s|abs }}
{{ s|round }}
{{ 1.5|round(0, 'up') }}
{{ z|default('q') }}|{{ z|default('q', true) }}|{{ no|default('q') }}|{{ no|d('q', true) }}|{{ x|d }}|
> {{ d.zz|default(d.a) }}|{{ x|default(default_value=3) }}|{{ 0|default(5, boolean=true) }}
{{ 5|string + 'a' }}|{{ none|string }}|{{ [1, 'a']|string }}|{{ d|string }}|{{ 1.0|string }}
{{ d|attr('copy') is callable }}
{{ s|attr('upper') is callable }}|{{ d|attr('a') is defined }}|{{ n|attr('zz') is defined }}
{{ d|tojson }}|{{ mixed|tojson }}|{{ 'é😀\u2028<>&\'"\x00\x1f\x7f\b\f\n\r\t\\/'|tojson }}|{{ 1.0|tojson }}|
> {{ 1e16|tojson }}|{{ (1, 2)|tojson }}|{{ none|tojson }}|{{ {}|tojson }}|{{ []|tojson }}|
> {{ {1: 2, none: 3, 1.5: true}|tojson }}
{{ d|tojson(indent=2) }}|{{ d|tojson(indent=0) }}|{{ d|tojson(indent='--') }}|
> {{ l|tojson(separators=(',', ':')) }}|{{ {'b': 1, 'a': [1, {}]}|tojson(sort_keys=true) }}|
> {{ 'é😀\x7f'|tojson(ensure_ascii=true) }}|{{ [[], {}, [1]]|tojson(indent=1) }}|{{ d|tojson(true) }}|
> {{ {'b': 1, 'a': 2}|tojson(indent=2, sort_keys=true, separators=(', ', ':')) }}
{{ d.items()|tojson }}
{{ l|select|tojson }}
{{ s.upper|tojson }}
{{ {'b': 1, 2: 3}|tojson(sort_keys=true) }}
{{ 'nan'|float|tojson }}{{ ('inf'|float * -1)|tojson }}
{{ s|tojson|safe }}|{{ s|safe }}
{% set h = '<b>&"\''|safe %}{% set p = '<i>' %}{{ h }}|{{ h + p }}|{{ p + h }}|{{ h ~ p }}|{{ h + h }}|{{ [h] }}|
> {{ h|length }}|{{ h == '<b>&"\'' }}|{{ h * 2 + p }}|{{ h[0] + p }}|{{ h[1:] + p }}|{{ h|upper + p }}|
> {{ h|trim + p }}|{{ h|string + p }}|{{ h|title + p }}|{{ h|capitalize + p }}|{{ h|replace('b', p) + p }}|
> {{ h|tojson + p }}|{{ h|reverse + p }}|{{ h|first + p }}|{{ h.strip('<') + p }}|{{ h.split('b')[0] + p }}|
> {{ h.partition('b')[0] + p }}|{{ [h, p]|join + p }}|{{ h|default('') + p }}|{{ h|indent + p }}|
> {{ h|center(9) + p }}|{{ h.startswith(p) }}|{{ p in h }}|{{ h in [p] }}|{{ {h: 1}[h] }}|{{ h is string }}|
> {{ h is escaped }}|{{ p is escaped }}|{{ h.upper() + p }}|{{ h|list }}|{{ h < p }}|{{ h|lower|e }}|{{ p|e + p }}|
> {{ p|escape }}|{{ h|forceescape }}|{{ 5|e + p }}|{{ none|safe + p }}|{{ h if h else p }}|{{ h|int }}|{{ '7'|e|int }}
{{ ('<'|safe) + 1 }}
{{ 1 + ('<'|safe) }}
{{ ('<'|safe).nope is defined }}
{% filter upper %}a{{ s }}{% set q = 1 %}{% endfilter %}{{ q is defined }}|{% filter trim|replace('b', 'c') %} abc
{% filter nope %}{% endfilter %}
{% filter %}{% endfilter %}
{% for i in l %}{% filter trim %} {{ loop.index }}{{ i }} {% endfilter %}{% endfor %}
{{ range(*[1, 4])|list }}|{{ dict(**{'a': 1}) }}|{{ dict(b=2, **{'a': 1}) }}|{{ 'a-b'.split(*['-']) }}|
> {% macro f(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(*[1]) }}{{ f(*[1, 3]) }}{{ f(1, **{'b': 5}) }}{{ f(**{'a': 7}) }}|
> {{ namespace(**d).a }}|{{ [1, 2]|join(*['-']) }}|{{ f(*(1,), b=3) }}|{{ f(*'xy') }}
{{ range(*5)|list }}
{{ dict(**5) }}
{{ dict(a=1, **{'a': 2}) }}
{{ dict(**{1: 2}) }}
{{ f(**x, *y) }}
{{ f(*x, y) }}
{{ '{}-{}'.format(1, 'b') }}|{{ '{0}{1}{0}'.format('a', 'b') }}|{{ '{a}{b}'.format(a=1, b=none) }}|{{ '{{}}{}'.format(x) }}|
> {{ 'é{}'.format('中') }}|{{ ''.format() }}|{{ '{}'.format([1, 'a']) }}|{{ '{a}{}'.format(1, a=2) }}|{{ '}}{{'.format() }}
{{ '{}{0}'.format(1) }}
{{ '{0}{}'.format(1) }}
{{ '{}{}'.format(1) }}
{{ '{a}'.format(1) }}
{{ '{'.format(1) }}
{{ '}'.format(1) }}
{% if z %}{{ s|nope }}{{ s is nope }}{% endif %}{{ 'a' if flag else s|nope }}{{ s|nope if z else 'b' }}
{% if flag %}{{ s|nope }}{% endif %}
{% if flag %}{{ s is nope }}{% endif %}
{% if z %}{% for i in l %}{{ s|nope }}{% endfor %}{% endif %}
{% if z %}{% for i in l|nope %}{% endfor %}{% set a = s|nope %}{% endif %}ok
{{ [s|nope if z else 1, s|nope] }}
{% if s|nope %}{% endif %}
{{ 'x' if s is nope else 'y' }}
{{ n is odd }}|{{ n is even }}|{{ 9 is divisibleby 3 }}|{{ 9 is divisibleby(2) }}|{{ -3 is odd }}|
> {{ 2.0 is even }}|{{ 3.0 is odd }}|{{ true is odd }}
{{ s is odd }}
{{ x is odd }}
{{ 9 is divisibleby(0) }}
{{ s is string }}|{{ n is string }}|{{ n is number }}|{{ f is number }}|{{ flag is number }}|
> {{ s is number }}|{{ n is integer }}|{{ flag is integer }}|{{ f is float }}|{{ flag is boolean }}|
> {{ 1 is boolean }}|{{ flag is true }}|{{ 1 is true }}|{{ false is false }}|{{ 0 is false }}|
> {{ no is none }}|{{ x is none }}|{{ z is none }}|{{ no is not none }}
{{ d is mapping }}|{{ l is mapping }}|{{ l is sequence }}|{{ s is sequence }}|{{ d is sequence }}|
> {{ n is sequence }}|{{ x is sequence }}|{{ s is iterable }}|{{ n is iterable }}|{{ x is iterable }}|
> {{ no is iterable }}|{{ d.items() is iterable }}|{{ d.items() is sequence }}|{{ range(3) is sequence }}|
> {{ s.upper is callable }}|{{ x is callable }}|{{ range is callable }}|{{ n is callable }}
{{ x is defined }}|{{ s is defined }}|{{ x is undefined }}|{{ x is not defined }}|{{ not x is defined }}|
> {{ d.zz is defined }}|{{ d.a is defined }}|{{ no is defined }}|{{ x is defined and x.y }}|
> {{ s is defined and s|length > 3 }}
{{ n is eq 7 }}|{{ n is equalto(7) }}|{{ n is ne 7 }}|{{ n is gt 3 }}|{{ n is lt(3) }}|{{ n is ge 7 }}|
> {{ n is le 6 }}|{{ n is greaterthan 1 }}|{{ n is lessthan 1 }}|{{ 1 is in l }}|{{ 'a' is in 'abc' }}|
> {{ 1 is not in l }}
{{ false is sameas false }}|{{ no is sameas none }}|{{ 0 is sameas false }}|{{ l is sameas l }}|
> {{ l is sameas [3, 1, 2] }}|{{ s is sameas false }}
{{ 'abc' is lower }}|{{ 'ABC' is upper }}|{{ 'aBc' is lower }}|{{ 1 is lower }}|{{ 'upper' is filter }}|
> {{ 'nope' is filter }}|{{ 'odd' is test }}|{{ 'nope' is test }}
{{ s is string and n is number }}|{{ s is string == true }}|{{ not s is string }}|{{ (s is string)|string }}|
> {{ s is string|string }}|{{ 'y' if s is string else 'n' }}|{{ n is eq 3 + 4 }}|{{ [s is string, 1] }}
{% if s is defined is defined %}a{% endif %}
{% if flag %}a{% elif n %}b{% else %}c{% endif %}{% if z %}a{% elif n %}b{% else %}c{% endif %}{% if z %}
> a{% elif e %}b{% else %}c{% endif %}{% if z %}a{% endif %}
{% if 1, %}t{% endif %}{% if flag: %}colon{% endif %}
{% for i in l %}
> {{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}
> {{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}{{ loop.previtem }}{{ loop.nextitem }}|{% endfor %}
{% for i in l if i > 1 %}{{ loop.index }}/{{ loop.length }}:{{ i }}{{ loop.last }},{% else %}none{% endfor %}
> {% for i in l if i > 9 %}x{% else %}none{% endfor %}{% for i in e %}x{% else %}empty{% endfor %}
> {% for i in x %}x{% else %}undef{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}
> {% for k, v in d|items %}{{ k }}{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}
> {{ a }}{{ b }}{{ c }}{% endfor %}{% for (a, b) in [[1, 2]] %}{{ a }}{{ b }}{% endfor %}
> {% for a, b in ['xy'] %}{{ a }}{{ b }}{% endfor %}
{% for a, b in [[1]] %}{% endfor %}
{% for a, b in [1] %}{% endfor %}
{% for i in no %}{% endfor %}
{% for i in 5 %}{% endfor %}
{% for i in l %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}|{% for i in l %}{% if i == 1 %}
> {% continue %}{% endif %}{{ i }}{% endfor %}|{% for i in l %}{% break %}{% else %}else{% endfor %}
> |{% for i in l %}{{ i }}{% if i == 1 %}{% break %}{% endif %}{% else %}else{% endfor %}|{% for i in l %}
> {% continue %}{% else %}else{% endfor %}
{% for i in l %}{% for j in l %}{% if j == 1 %}{% break %}{% endif %}{{ i }}{{ j }}{% endfor %}
> {{ loop.index }}{% endfor %}
{% break %}
{% for i in range(3) %}{{ loop.cycle('a', 'b') }}{{ loop.changed(i // 2) }}{% endfor %}
{% for i in l %}{{ loop.cycle() }}{% endfor %}
{% for i in l %}{{ loop.zz }}{{ loop is defined }}{% endfor %}{{ loop is defined }}
{% for i in [1, [2, [3]], 4] recursive %}{{ loop.depth }}{% if i is iterable %}({{ loop(i) }}){% else %}
> {{ i }}{% endif %}{% endfor %}
{% for i in l %}{{ loop(l) }}{% endfor %}
{% for i in 'añ' %}{{ i }}.{% endfor %}{% for i in (1, 2) %}{{ i }}{% endfor %}{% for i in range(3) %}
> {{ i }}{% endfor %}{% for i in l|map('string') %}{{ i }}{{ loop.length }}{% endfor %}{% for a in 1, 2 %}
> {{ a }}{% endfor %}
{% set a = 1 %}{% for i in l %}{{ a }}{% set a = a + i %}{{ a }},{% endfor %}{{ a }}
{% for i in l %}{{ q is defined }}{% set q = i %}{{ q }}{% endfor %}{{ q is defined }}
{% set s = 'new' %}{% for i in [1] %}{{ s }}{% set s = 'in' %}{{ s }}{% endfor %}{{ s }}
{% if flag %}{% set a = 5 %}{% endif %}{{ a }}{% if z %}{% set b = 5 %}{% endif %}{{ b is defined }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set a, b = b, a %}{{ a }}{{ b }}{% set (c, d2) = 'xy' %}
> {{ c }}{{ d2 }}{% set t2 = 1, %}{{ t2 }}
{% set a, b = [1, 2, 3] %}
{% set x.y = 1 %}
{% set d.a = 1 %}
{% set ns = namespace(a=1, b='x') %}{{ ns.a }}{{ ns['b'] }}{{ ns.zz is defined }}{% set ns.a = 2 %}
> {% set ns.c = [1] %}{{ ns.a }}{{ ns.c }}{% for i in l %}{% set ns.a = ns.a + i %}{% endfor %}
> {{ ns.a }}{{ ns }}{% if ns %}t{% endif %}
{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}{% set ns2 = namespace([('k', 'v')]) %}
> {{ ns2.k }}{{ ns == ns }}{{ ns == ns2 }}
{% set ns = namespace(_a=1) %}
{% set ns = namespace() %}{% set ns._a = 1 %}
{% set ns = namespace(items=3) %}{{ ns.items }}
{% set b %}x{{ n }}y{% endset %}{{ b }}{{ b|length }}{% set c | upper | replace('X', 'z') %}
> x{{ s }}{% endset %}{{ c }}{% set q2 %}{% set inner = 1 %}{% endset %}{{ inner is defined }}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% set c = 3 %}{{ c }}{% endwith %}
> {{ a is defined }}{{ c is defined }}{% with %}{{ n }}{% endwith %}{% set a = 1 %}{% with a = 2, b = a %}
> {{ a }}{{ b }}{% endwith %}
{% macro f(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }}|{{ f(1, 3) }}|{{ f(1, c=5) }}|
> {{ f(a=1) }}|{{ f(b=1) }}|{{ f() }}|{{ f('x')|upper }}|{{ f(1)|length }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b=2) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, a=2) }}
{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}
{% macro f() %}{{ late }}{{ s }}{% set s = 'in' %}{{ s }}{% endmacro %}{% set late = 'L' %}{{ f() }}{{ s }}
{% for i in [1, 2] %}{% macro f() %}{{ i }}{{ loop.index }}{% endmacro %}{{ f() }}{% endfor %}
{% macro outer() %}{% macro inner(x) %}<{{ x }}>{% endmacro %}{{ inner(1) }}{% endmacro %}
> {{ outer() }}{{ inner is defined }}
{% macro f() %}{{ a|default('none') }}{% endmacro %}{{ f() }}{% set a = 1 %}{{ f() }}
{% macro f() %}a{% endmacro %}{% set g = f %}{{ g() }}{{ f is callable }}
{% generation %}a{% set q = 1 %}{% endgeneration %}{{ q is defined }}{% for i in l %}{% generation %}
> {{ i }}{{ loop.index }}{% endgeneration %}{% endfor %}
{{ raise_exception('no ' ~ n) }}
{% if flag %}{{ raise_exception('yes') }}{% endif %}
{{ raise_exception(5) }}
{{ raise_exception() }}
{{ raise_exception('a', 'b') }}
{{ dict(a=1, b=[2]) }}|{{ dict({'x': 1}, y=2) }}|{{ dict([('a', 1)]) }}|{{ dict() }}|{{ dict(d)['a'] }}
{{ dict(1) }}
{{ d.get('a') }}|{{ d.get('zz') }}|{{ d.get('zz', 'q') }}|{{ d.keys()|list }}|{{ d.items() }}|{{ d.keys() }}|
> {{ d.values() }}|{{ d.copy() == d }}|{{ d.get(x) }}|{{ d.get(none, 5) }}|{{ d.items()|first }}
{{ d.get() }}
{{ d.get('a', default=1) }}
{{ d.get([1]) }}
{{ d.update({'q': 1}) }}
{{ d.pop('a') }}
{{ l.append(1) }}
{{ l.append is defined }}|{{ d.update is defined }}
{{ l.index(1) }}|{{ l.count(1) }}|{{ (1, 2).index(2) }}|{{ l.copy() }}|{{ mixed.count(1) }}
{{ l.index(99) }}
{{ s.__class__ }}|{{ s.__class__ is defined }}|{{ d.__init__ }}|{{ s['__class__'] is defined }}|
> {{ l._x is defined }}
{{ s.__class__.mro }}
{{ s.nope() }}
{{ s.nope }}
{{ s.upper() }}|{{ s['upper']() }}|{{ 'a'.upper().lower() }}|{{ ('a' + 'b').upper() }}|
> {{ 'a,b'.split(',')[0].upper() }}
{{ s.upper(1) }}
{{ n.upper() }}
{{ strftime_now is defined }}|{{ raise_exception is callable }}|{{ range(3) == range(3) }}
{{ lipsum is defined }}
{{- s -}} x
  {{- s }}  {{ n -}}  y  {{+ n }} z
a  {%- if flag -%}  b  {%- endif -%}  c
a {%+ if flag %} b {%+ endif +%} c
{{ '{{' }}{{ '%}' }}{{ "}}" }}{{ {'a': {'b': 1}}['a']['b'] }}{{ {}}}
{# comment #}a{#- c -#} b {#+ c +#} c {# {{ nope( }} #}d{##}e{#-#}f
{% raw %}{{ x }}{% if %}{% endraw %}|{%- raw -%}  a  {%- endraw -%}  b{% raw %} {% endraw %}c
{% raw %}{# x #}{% endraw -%} z
{{ "a" ~ 'b' -}}
{{ s }} }} %} #} { % {x {
{{ s
}}{% if
flag %}y{% endif %}
{{ [1, 2,] }}{{ {'a': 1,} }}{{ (1, 2,) }}{{ range(1, 3,)|list }}
{{ 1 if true }}{{ 1 if false else 2 if true else 3 }}
{{ 'a' if true else 1/0 }}{{ true or 1/0 }}{{ false and 1/0 }}
{{ s | upper | lower }}{{ s|upper() }}{{ -1|abs }}{{ 1 + 2|string|int }}{{ 'a' ~ 1 + 2 }}{{ 1 ~ 2 * 3 }}
> {{ 2 * 3 ~ 1 }}{{ not 1 + 1 }}{{ -s|length }}
{{ 1 -1 }}{{ 1-1 }}{{ 1 - -1 }}{{ --1 }}{{ +-1 }}{{ 2 ** -1 }}
{{ a.b.c }}
{{ deep.x.y.z[1] }}|{{ deep['x'].y['z'][-1] }}|{{ deep.x.q is defined }}|{{ deep.q.x is defined }}
{{ deep.x.y.z.0 }}|{{ deep.x.y.z.1 }}|{{ [[1, 2]].0.1 }}
{{ m | selectattr('role', 'in', ['user', 'assistant']) | map(attribute='content') | map('trim') | join('+') }}
{{ True }}{{ False }}{{ None }}{{ true }}{{ false }}{{ none }}
{{ nope }}{{ nope is defined }}
{{ (l|length) - 1 }}|{{ l|length - 1 }}|{{ l[l|length - 1] }}|{{ m[(m|length) - 1].role }}|{{ loop }}
{{ {'a': 1}.items()|list }}|{{ {'a': 1}.a }}|{{ {'a': 1}['a'] }}|{{ {n: s}[7] }}|{{ {'x': 1}.x + 1 }}
{{ {[1]: 2} }}
{{ {x: 2} }}
{{ 'é'|length }}{{ '\u00e9'|length }}{{ 'e\u0301'|length }}{{ '😀'|length }}{{ '😀'[0] }}
{{ true and 'a' or 'b' }}|{{ false and 'a' or 'b' }}|{{ 1 if 1 in l and not z else 2 }}|
> {{ not flag or n > 3 and n < 10 }}
{{ n > 3 and n }}|{{ s == 'Hello World' }}|{{ s != "x" }}|{{ (n == 7) != (f == 2.5) }}|{{ n % 2 == 1 }}|
> {{ n*2+1 }}|{{ (n+1)*2 }}|{{ n/2 }}|{{ f*2 }}|{{ f + n }}|{{ n - f }}|{{ 7.0 // 2 }}|{{ 1e2 }}
{{ 'abc'[1:] + 'x' }}|{{ 'abc'[:-1] }}|{{ ('abc' ~ 1)[::-1] }}|{{ [1,2,3][1:][0] }}|
> {{ 'a.b.c'.split('.')[1:]|join('/') }}
{{ 9223372036854775807 }}|{{ -9223372036854775807 }}
"""

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


class Expressions:
    """Random expressions, most of which make sense."""

    def __init__(self, rng):
        self.rng = rng

    def literal(self):
        return self.rng.choice(["0", "1", "2", "-1", "7", "2.5", "0.0", "true", "false", "none", "''", "'a'", "'Ab c'",
                                "'é😀'", "' x '", "[]", "[1, 2, 3]", "['b', 'a']",
                                "{}", "{'a': 1}", "(1, 'x')", "s", "n", "f", "l", "e", "d", "m", "u", "t", "z", "no",
                                "x", "flag", "mixed", "w", "neg", "deep.x", "m[0].role", "d.b"])

    def expr(self, depth):
        rng = self.rng
        if depth <= 0 or rng.random() < 0.1:
            return self.literal()
        sub = lambda: self.expr(depth - 1)
        kind = rng.randrange(12)
        if kind == 0:
            return f"({sub()} {rng.choice(['+', '-', '*', '//', '%', '/', '~', '+', '~'])} {sub()})"
        if kind == 1:
            return f"{sub()} {rng.choice(['+', '~', '-', '*'])} {sub()}"
        if kind == 2:
            return f"({sub()} {rng.choice(['==', '!=', '<', '<=', '>', '>=', 'in', 'not in', 'and', 'or'])} {sub()})"
        if kind == 3:
            return f"({sub()} if {sub()} else {sub()})"
        if kind == 4:
            return f"(not {sub()})"
        if kind == 5:
            return f"{sub()}[{rng.choice(['0', '-1', '1', ':1', '1:', '::-1', ':-1', sub(), repr('a')])}]"
        if kind in (6, 7):
            return f"{sub()}|{self.filter(sub)}"
        if kind == 8:
            return f"({sub()} is {rng.choice(['', 'not '])}{self.test()})"
        if kind == 9:
            return f"{sub()}.{self.method(sub)}"
        if kind == 10:
            return f"[{sub()}, {sub()}]"
        return f"{{'k': {sub()}, 'a': {sub()}}}"

    def filter(self, sub):
        return self.rng.choice([
            "upper", "lower", "title", "capitalize", "trim", "length", "first", "last", "list", "join", "join(',')",
            "string", "int", "float", "abs", "round", "sort", "unique|list", "reverse|list",
            "tojson", "tojson(indent=1)", "default('D')", "default('D', true)", "min", "max", "sum", "items|list",
            "dictsort", "select|list", "reject|list", "map('string')|list", "map('upper')|list",
            "map(attribute='a')|list", "selectattr('a')|list", "selectattr('role', 'equalto', 'user')|list",
            "select('string')|list", "reject('none')|list", "indent(1)", "batch(2)|list", "slice(2)|list",
            "center(9)", "safe", "e", "escape", f"replace('a', {sub()})", f"join({sub()})", f"default({sub()})", "trim('a')",
            "sort(reverse=true)", "attr('a')", "count", "reverse"])

    def test(self):
        return self.rng.choice(["defined", "undefined", "none", "string", "number", "integer", "float", "boolean",
                                "true", "false", "mapping", "iterable", "sequence", "callable", "odd", "even",
                                "divisibleby 2", "eq 1", "ne 'a'", "in [1, 'a']", "gt 1", "lt 'b'", "lower", "upper",
                                "sameas none"])

    def method(self, sub):
        return self.rng.choice(["upper()", "lower()", "strip()", "lstrip()", "rstrip('a')", "split()", "split('a')",
                                "split(' ', 1)", "rsplit('a', 1)", "splitlines()", "startswith('a')", "endswith('a')",
                                "find('a')", "count('a')", "replace('a', 'bb')", "title()", "capitalize()", "isdigit()",
                                "isalpha()", "islower()", "isspace()", "get('a')", "items()|list", "keys()|list",
                                "values()|list", "a", "role", "x", "0", "index(1)", "count(1)", f"join({sub()})",
                                f"get({sub()})", f"startswith({sub()})", "partition('b')", "center(7, '*')",
                                "zfill(4)"])


class Templates(Expressions):
    """Random templates: statements, scopes and white space."""

    NAMES = ["a", "b", "n", "s", "ns.v", "q"]

    def tag(self, inside):
        before, after = (self.rng.choice(["", "", "", "-", "+"]) for _ in range(2))
        return "{%" + before + " " + inside + " " + after + "%}"

    def text(self):
        return self.rng.choice(["x", " ", "\n", "  ", "\n  ", " y\n", "\n\n", "", "\t", "{# c #}", "  {#- c #}\n",
                                "{{- a -}}", " {{ b }}\n", "{{ q }}", "{{ ns.v }}", "{{ s }}", "{{ n }}"])

    def body(self, depth, loop):
        return "".join(self.statement(depth, loop) for _ in range(self.rng.choice((1, 1, 2, 3))))

    def statement(self, depth, loop=False):
        rng = self.rng
        if depth <= 0 or rng.random() < 0.35:
            return self.text()
        inner = lambda loop=loop: self.text() + self.body(depth - 1, loop) + self.text()
        kind = rng.randrange(9)
        if kind == 0:
            middle = "".join(self.tag("elif " + self.expr(1)) + inner() for _ in range(rng.randrange(2)))
            if rng.random() < 0.5:
                middle += self.tag("else") + inner()
            return self.tag("if " + self.expr(1)) + inner() + middle + self.tag("endif")
        if kind in (1, 2):
            over = rng.choice(["l", "w", "range(3)", "m|map(attribute='n')", "'xyz'", "e", "[1, 2]", "d", self.expr(1)])
            cond = rng.choice(["", "", "", " if a", " if loop", " if not b is defined"])
            ending = self.tag("else") + inner() if rng.random() < 0.3 else ""
            return self.tag(f"for {rng.choice('abi')} in {over}{cond}") + inner(True) + ending + self.tag("endfor")
        if kind in (3, 4):
            return self.tag(f"set {rng.choice(self.NAMES)} = {self.expr(1)}")
        if kind == 5:
            chain = rng.choice(["", " | upper", " | trim"])
            return self.tag(f"set {rng.choice(self.NAMES)}{chain}") + inner(False) + self.tag("endset")
        if kind == 6:
            return self.tag(f"with {rng.choice('ab')} = {self.expr(1)}") + inner() + self.tag("endwith")
        if kind == 7:
            f = rng.choice("fg")
            calls = "{{ " + f + "(1) }}{{ " + f + "(b=2) }}"
            return self.tag(f"macro {f}(a, b={self.expr(0)})") + inner(False) + self.tag("endmacro") + calls
        if loop:
            return rng.choice([self.tag("break"), self.tag("continue"), "{{ loop.index }}{{ loop.last }}",
                               "{{ loop.length }}", self.tag("if loop.first") + inner() + self.tag("endif")])
        return "{{ " + self.expr(2) + " }}"

    def template(self):
        return "{% set ns = namespace(v=0) %}" + self.body(3, False)


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
    fixed = FIXED.strip("\n").replace("\n> ", "").split("\n") + EXTRA
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
