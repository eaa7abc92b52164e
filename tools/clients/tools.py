"""What OpenAI's own Python client makes of calls of tools: whole, streamed, by its accumulator, and their results."""

import json
import sys

import openai

TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "The weather.", "strict": True, "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "note": {"type": "string"}}, "required": ["city", "note"],
    "additionalProperties": False}}}, {"type": "function", "function": {"name": "get_time", "strict": True, "parameters": {
        "type": "object", "properties": {}, "required": [], "additionalProperties": False}}}]
ASK = {"role": "user", "content": "What is the weather in Oslo, and what time is it?"}
CHAT = {"model": "scripted", "messages": [ASK], "tools": TOOLS}
ARGUMENTS = ['{"city": "Oslo", "note": "<é>"}', "{}"]


def called(calls) -> None:
    assert [c.function.name for c in calls] == ["get_weather", "get_time"], calls
    assert [c.function.arguments for c in calls] == ARGUMENTS, calls
    assert all(c.type == "function" and c.id.startswith("call_") for c in calls) and calls[0].id != calls[1].id, calls


def conversation(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**CHAT).choices[0]
    assert first.finish_reason == "tool_calls" and first.message.content == "Let me see.", first
    called(first.message.tool_calls)
    results = [{"role": "tool", "tool_call_id": c.id, "content": text} for c, text in zip(first.message.tool_calls, ("4", "noon"))]
    last = client.chat.completions.create(**{**CHAT, "messages": [ASK, first.message, *results]}).choices[0]
    assert last.message.content == "It is 4 degrees at noon." and last.finish_reason == "stop", last
    assert last.message.tool_calls is None, last


def choices(client: openai.OpenAI) -> None:
    one = client.chat.completions.create(**CHAT, parallel_tool_calls=False, tool_choice="auto").choices[0]
    assert len(one.message.tool_calls) == 1 and one.finish_reason == "tool_calls", one
    none = client.chat.completions.create(**CHAT, tool_choice="none").choices[0]
    assert none.message.content == "No tools." and none.message.tool_calls is None and none.finish_reason == "stop", none
    two = client.chat.completions.create(**CHAT, n=2)
    for c in two.choices:
        called(c.message.tool_calls)
    assert len({t.id for c in two.choices for t in c.message.tool_calls}) == 4, two


def streamed(client: openai.OpenAI) -> None:
    content, calls, finish, pieces = "", {}, None, 0
    for chunk in client.chat.completions.create(**CHAT, stream=True):
        delta = chunk.choices[0].delta
        assert finish is None, chunk
        content += delta.content or ""
        for c in delta.tool_calls or []:
            if c.index not in calls:
                assert c.id and c.type == "function" and c.function.name and c.function.arguments == "", chunk
                calls[c.index] = [c.function.name, ""]
            else:
                assert c.id is None and c.type is None and c.function.name is None, chunk
                pieces += 1
            calls[c.index][1] += c.function.arguments
        finish = chunk.choices[0].finish_reason
    assert content == "Let me see." and finish == "tool_calls" and pieces > 4, (content, finish, pieces)
    assert calls == {0: ["get_weather", ARGUMENTS[0]], 1: ["get_time", ARGUMENTS[1]]}, calls


def accumulated(client: openai.OpenAI) -> None:
    """The client's own accumulator is stricter than a loop."""
    done = []
    with client.chat.completions.stream(**CHAT) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.done":
                done.append((event.name, event.arguments))
        final = stream.get_final_completion().choices[0]
    assert done == [("get_weather", ARGUMENTS[0]), ("get_time", ARGUMENTS[1])], done
    called(final.message.tool_calls)
    assert final.message.content == "Let me see." and final.finish_reason == "tool_calls", final
    assert final.message.tool_calls[0].function.parsed_arguments == json.loads(ARGUMENTS[0]), final


def main() -> None:
    client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="test-key", max_retries=0, timeout=60)
    for check in conversation, choices, streamed, accumulated:
        check(client)
    print("clients: python", openai.__version__, "passed with tools")


if __name__ == "__main__":
    main()
