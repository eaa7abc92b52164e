#!/usr/bin/env python3
"""Writes the reference renderings of chat templates in engine/tokenizer/testdata/chat.

Needs the transformers library, whose compiled Jinja2 template is the reference. Every template of that folder, and the
bundled model's own, is rendered over the conversations below; the engine must give the same text, raise the same
message, or fail where the reference fails. Conversations with tools and calls of them, for which the order of keys matters,
go the whole way that apply_chat_template takes with them. testdata/README.md describes the files.

    python tools/goldens/chat.py [--out DIR]
"""

import sys
from pathlib import Path

sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]  # tokenizers.py is ours

import argparse
import gzip
import json

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "engine/model/bundled/tokenizer_config.json"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def chat(*turns):
    """A conversation, written as ("u", "text") or ("u", "text", "name") for each message."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "i": "ipython"}
    messages = []
    for role, content, *name in turns:
        message = {"role": roles.get(role, role), "content": content}
        if name:
            message["name"] = name[0]
        messages.append(message)
    return messages


CHATS = [
    chat(("u", "Hello")),
    chat(("u", "")),
    chat(("u", "  padded \n\n")),
    chat(("s", "Be brief."), ("u", "Hi")),
    chat(("s", ""), ("u", "Hi")),
    chat(("s", " \n "), ("u", "\t")),
    chat(("u", "What is 2+2?"), ("a", "4")),
    chat(("u", "What is 2+2?"), ("a", "4"), ("u", "And 3+3?")),
    chat(("s", "You count."), ("u", "1"), ("a", "2"), ("u", "3"), ("a", "4"), ("u", "5")),
    chat(*((("u", "a")[i % 2], f"turn {i}") for i in range(21))),
    chat(("u", "日本語で答えて。"), ("a", "はい、分かりました。"),
         ("u", "👩‍👩‍👧‍👦 é e\u0301 ß İ \u2028 \u00a0 x")),
    chat(("s", "Größe\u3000"), ("u", "\u00a0nbsp\u00a0"), ("a", "\u2003em\u2003\u200b"),
         ("u", "\u0085\u001c\u001fx\u001e\u000b")),
    chat(("u", "<s>[INST] <<SYS>> </s> <|im_end|> {{ bos_token }} {% if %} {# #}")),
    chat(("u", "quotes ' \" \\ \\n and <b>&amp;</b>")),
    chat(("u", "\r\nwindows\r\n"), ("a", "\rmac\r")),
    chat(("u", "\x00\x01\x7f")),
    chat(("u", "think"), ("a", "<think>\nhm\n</think>\n\nyes")),
    chat(("u", "think"), ("a", "<think>\nhm\n</think>\n\nyes"), ("u", "again")),
    chat(("u", "x"), ("a", "</think>"), ("u", "y"), ("a", "no think"), ("u", "z"), ("a", "a</think>b</think>\n\nc")),
    chat(("u", "x"), ("a", "<think><think>\n\n</think>\n")),
    chat(("u", "x"), ("a", "\n\nplain\n\n"), ("u", "<tool_response>r</tool_response>"), ("a", "done")),
    chat(("u", "<tool_response>all of it</tool_response>")),
    chat(("u", "call"), ("a", ""), ("t", "42"), ("a", "It is 42.")),
    chat(("u", "call"), ("a", "calling"), ("t", "1"), ("t", "2"), ("u", "well?")),
    chat(("i", "out"), ("u", "in")),
    chat(("u", "named", "Ann"), ("a", "hello Ann", "Bot"), ("u", "bye", "Ann")),
    chat(("a", "I start.")),
    chat(("a", "I start."), ("u", "And I?")),
    chat(("u", "one"), ("u", "two")),
    chat(("u", "one"), ("a", "two"), ("a", "three")),
    chat(("s", "only system")),
    chat(("s", "one"), ("s", "two"), ("u", "three")),
    chat(("u", "first"), ("s", "late system"), ("u", "more")),
    chat(("critic", "unknown role")),
    chat(("u", "fine"), ("critic", "unknown role")),
    chat(("USER", "upper case")),
    chat(("", "no role")),
    chat(("u", "long " * 200), ("a", "ok"), ("u", "中" * 100)),
]

TOOL = {"type": "function", "function": {"description": "Adds <a> & 'b'.", "name": "add", "parameters": {
    "properties": {"a": {"type": "number"}, "é": {"enum": ["ü", 1.5, None, True], "type": "string"}},
    "type": "object"}}}

VARS = [
    {},
    {"enable_thinking": False},
    {"enable_thinking": True, "date_string": "1 Jan 2025"},
    {"date_string": "1 Jan 2025", "tools": [TOOL], "tools_in_user_message": False},
    {"date_string": "2 Feb 2025", "tools": [TOOL, TOOL], "builtin_tools": ["code_interpreter", "brave_search",
        "wolfram_alpha"]},
    {"date_string": "", "tools": [], "bos_token": "<other>"},
]
VARS = json.loads(json.dumps(VARS, sort_keys=True))  # the engine goes through a request's variables in this order


def calls(*functions, content="", **more):
    """An assistant's message with calls, each written as (id, name, arguments as text)."""
    return {"role": "assistant", "content": content, "tool_calls": [
        {"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in functions], **more}


def result(text, call="abcdefgh1", **more):
    return {"role": "tool", "content": text, "tool_call_id": call, **more}


U = {"role": "user", "content": "What is the weather in Oslo?"}
S = {"role": "system", "content": "Be brief."}
OSLO = calls(("abcdefgh1", "get_weather", '{"unit": "C", "city": "Oslo"}'))
BERGEN = ("call_0123456789abcdef", "get_weather", '{"city":"Bergen","days":[1,2.0,1e3,-0.5],"x":{"z":null,"a":true}}')
TOOL_CHATS = [
    [U],
    [S, U],
    [U, OSLO],
    [S, U, OSLO, result('{"celsius": 4}')],
    [S, U, OSLO, result('{"celsius": 4}', name="get_weather"), {"role": "assistant", "content": "4 degrees."}, U],
    [U, calls(("abcdefgh1", "get_weather", '{"city": "Oslo"}'), BERGEN), result("4"), result("5", "call_0123456789abcdef")],
    [U, calls(BERGEN, content="Let me see.\n"), result("rain <&> \"ü\"")],
    [U, calls(("abcdefgh1", "now", "{}")), result("")],
    [U, calls(("abcdefgh1", "broken", '{"a": ')), result("no")],
    [U, calls(("abcdefgh1", "list", "[1]")), result("no")],
    [U, calls(("abcdefgh1", "text", '{"s": "日本 \\u00e9 \\" \\\\ \\n <b> \\u007f 👍", "é": 1}')), result("ok")],
    [U, {"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": '{"b": 1, "a": 2}', "name": "f"},
        "type": "function", "id": "abcdefgh1"}]}, result("x")],
    [U, calls(("abcdefgh1", "f", '{"b": 1, "a": 2, "b": 3}'), reasoning="hm"), result("x"), U],
]
TOOLS = [
    None,
    [],
    [{"type": "function", "function": {"name": "get_weather", "description": "The weather <now> & 'here'.", "parameters": {
        "type": "object", "properties": {"unit": {"type": "string", "enum": ["C", "F"]}, "city": {"type": "string"}},
        "required": ["city"]}}}],
    [{"type": "function", "function": {"name": "now"}},
     {"function": {"strict": True, "parameters": {"type": "object", "$defs": {"z": {"minimum": -1, "maximum": 1e3},
         "a": {"default": 1.0, "multipleOf": 0.1, "examples": [None, False, [], {}, 9007199254740993, 1e22, 1e-7]}},
         "additionalProperties": False, "properties": {}}, "description": "Größe \u2028 \"日\" \\ \n\t\x7f 👩‍👩‍👧", "name": "b"},
      "type": "function", "x-more": [1, "2"]}],
]


def arguments_as_objects(messages):
    """What a server does for the templates: OpenAI's API has arguments as text."""
    messages = json.loads(json.dumps(messages))
    for message in messages:
        for call in message.get("tool_calls", []):
            try:
                read = json.loads(call["function"]["arguments"])
            except ValueError:
                continue
            if isinstance(read, dict):
                call["function"]["arguments"] = read
    return messages


def render_tools(source, messages, prompt, tools):
    """As render, by the function below apply_chat_template."""
    try:
        texts, _ = render_jinja_template([arguments_as_objects(messages)], tools=tools, chat_template=source,
                                         add_generation_prompt=prompt, date_string="26 Jul 2024", **TOKENS)
        return [texts[0], None]
    except jinja2.exceptions.TemplateError as e:
        return [None, str(e) if type(e) is jinja2.exceptions.TemplateError else None]
    except (TypeError, ValueError, KeyError, IndexError, AttributeError):
        return [None, None]


def write_tools(sources, out):
    results = {}
    for name, source in sources.items():
        results[name] = [[c, t, prompt, *render_tools(source, messages, prompt, tools)] for c, messages in
            enumerate(TOOL_CHATS) for t, tools in enumerate(TOOLS) for prompt in (True, False)]
        rendered = sum(case[3] is not None for case in results[name])
        print(f"{name}: {len(results[name])} cases with tools, {rendered} rendered")
    data = {"tokens": TOKENS, "chats": TOOL_CHATS, "tools": TOOLS, "templates": results}
    raw = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    (out / "tools.json.gz").write_bytes(gzip.compress(raw, 9, mtime=0))


def render(template, messages, prompt, variables):
    """[text, None], [None, what raise_exception said], or [None, None] if it failed in another way."""
    given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": prompt, **TOKENS,
             **variables}
    try:
        return [template.render(**given), None]
    except jinja2.exceptions.TemplateError as e:
        return [None, str(e) if type(e) is jinja2.exceptions.TemplateError else None]
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError):
        return [None, None]


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--out", type=Path, default=ROOT / "engine/tokenizer/testdata/chat")
    args = ap.parse_args()
    sources = {p.stem: p.read_text(encoding="utf-8") for p in sorted(args.out.glob("*.jinja"))}
    sources["bundled"] = json.loads(BUNDLED.read_text(encoding="utf-8"))["chat_template"]
    results = {}
    for name, source in sources.items():
        template = _compile_jinja_template(source)
        cases = []
        for v, variables in enumerate(VARS):
            if name == "llama32" and "date_string" not in variables:
                continue  # it would ask for today's date
            for c, messages in enumerate(CHATS):
                for prompt in (True, False):
                    cases.append([c, v, prompt, *render(template, messages, prompt, variables)])
        results[name] = cases
        said = sum(case[4] is not None for case in cases)
        failed = sum(case[3] is None and case[4] is None for case in cases)
        print(f"{name}: {len(cases)} cases, {said} raise, {failed} fail")
    data = {"tokens": TOKENS, "chats": CHATS, "vars": VARS, "templates": results}
    raw = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    (args.out / "renderings.json.gz").write_bytes(gzip.compress(raw, 9, mtime=0))
    write_tools(sources, args.out)


if __name__ == "__main__":
    main()
