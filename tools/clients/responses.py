"""What OpenAI's own Python client makes of responses: whole, streamed, parsed, with tools, stored, gone on from; and whether
its types, taken strictly, are what the server sends. Runs on scripted answers, which call tools, and on the bundled model."""

import json
import sys
import typing

import openai
import pydantic
from openai.types.responses import Response, ResponseStreamEvent, response_item_list

PROMPT = "The password of Mira is copper-lantern. What is the password of Mira?"
ANSWER = "The password of Mira is copper-lantern."
EVENT = pydantic.TypeAdapter(ResponseStreamEvent)
TOOLS = [{"type": "function", "name": "get_weather", "description": "The weather.", "strict": True, "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "note": {"type": "string"}}, "required": ["city", "note"],
    "additionalProperties": False}}, {"type": "function", "name": "get_time", "strict": True, "parameters": {
        "type": "object", "properties": {}, "required": [], "additionalProperties": False}}]
ASK = {"model": "scripted", "input": "What is the weather in Oslo, and what time is it?", "tools": TOOLS}
ARGUMENTS = ['{"city": "Oslo", "note": "<é>"}', "{}"]


def known(value, path: str = "") -> None:
    """Nothing is there that the client's types do not have. That it was stored is OpenAI's own field, but not its types'."""
    if isinstance(value, pydantic.BaseModel):
        extra = set(value.model_extra or {}) - {"store", "bytes"}
        assert not extra, (path, extra)
        for name in type(value).model_fields:
            known(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for i, one in enumerate(value):
            known(one, f"{path}[{i}]")


def strictly(text: str) -> Response:
    got = Response.model_validate_json(text, strict=True)
    known(got)
    return got


def create(client: openai.OpenAI, **body) -> Response:
    """Makes one whole and one in events, which are to be the same."""
    whole = strictly(client.responses.with_raw_response.create(**body).text)
    last, number = None, 0
    with client.responses.with_streaming_response.create(**body, stream=True) as stream:
        lines = [line for line in stream.iter_lines() if line]
    for name, data in zip(lines[::2], lines[1::2], strict=True):
        event = EVENT.validate_json(data.removeprefix("data: "), strict=True)
        known(event)
        assert name == f"event: {event.type}" and event.sequence_number == number, (name, data)
        last, number = event, number + 1
    assert last.type == f"response.{whole.status}" and alike(last.response) == alike(whole), (last, whole)
    return whole


def alike(got: Response) -> dict:
    kept = got.model_dump(exclude={"id", "created_at", "completed_at"})
    kept["usage"].pop("input_tokens_details")  # the cache has more of a prompt the second time
    for item in kept["output"]:
        item.pop("id")
        item.pop("call_id", None)
    return kept


def raises(kind: type[openai.APIStatusError], param: str | None, create, **kw) -> str:
    try:
        create(**kw)
    except kind as e:
        assert e.body["code"] == e.status_code and e.body["type"] and e.body["param"] == param, e.body
        return e.body["message"]
    raise AssertionError(f"no {kind.__name__} for {kw}")


def calls(client: openai.OpenAI) -> None:
    """Tools are called and their results sent, by all that was and by the last answer's id."""
    def called(items) -> None:
        assert [i.type for i in items] == ["message", "function_call", "function_call"], items
        assert items[0].content[0].text == "Let me see.", items
        assert [(c.name, c.arguments) for c in items[1:]] == list(zip(("get_weather", "get_time"), ARGUMENTS)), items
        assert items[1].call_id.startswith("call_") and items[1].call_id != items[2].call_id, items

    first = create(client, **ASK, instructions="Be brief.", metadata={"a": "b"})
    called(first.output)
    assert first.output_text == "Let me see." and first.status == "completed" and first.metadata == {"a": "b"}, first
    results = [{"type": "function_call_output", "call_id": c.call_id, "output": text} for c, text in zip(first.output[1:], ("4", "noon"))]
    asked = {"role": "user", "content": ASK["input"]}
    for more in {"input": [asked, *first.output, *results]}, {"input": results, "previous_response_id": first.id}:
        last = create(client, **{**ASK, **more})
        assert last.output_text == "It is 4 degrees at noon." and last.previous_response_id == more.get("previous_response_id"), last
    listed = list(client.responses.input_items.list(last.id, order="asc", limit=2))
    assert [i.type for i in listed] == ["message"] * 2 + ["function_call"] * 2 + ["function_call_output"] * 2, listed
    one = create(client, **ASK, parallel_tool_calls=False)
    assert len(one.output) == 2, one
    none = create(client, **ASK, tool_choice="none")
    assert none.output_text == "No tools." and len(none.tools) == 2 and none.tool_choice == "none", none
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_time"}]}
    called(create(client, **ASK, tool_choice=allowed).output)

    # The client's own accumulator is stricter than a loop.
    text, arguments = "", {}
    with client.responses.stream(**ASK) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                text += event.delta
                assert event.snapshot == text, event
            elif event.type == "response.function_call_arguments.delta":
                arguments[event.output_index] = arguments.get(event.output_index, "") + event.delta
                assert event.snapshot == arguments[event.output_index], event
        final = stream.get_final_response()
    called(final.output)
    assert text == "Let me see." and arguments == {1: ARGUMENTS[0], 2: ARGUMENTS[1]}, (text, arguments)
    assert final.output[1].parsed_arguments == json.loads(ARGUMENTS[0]), final


class Weather(pydantic.BaseModel):
    city: str
    note: str


def thoughts(client: openai.OpenAI) -> None:
    got = create(client, model="scripted", input="Think.")
    assert [i.type for i in got.output] == ["reasoning", "message"] and got.output[0].content[0].text == "Hm." and got.output_text == "Yes.", got
    assert 0 < got.usage.output_tokens_details.reasoning_tokens < got.usage.output_tokens, got
    again = create(client, model="scripted", input=[{"role": "user", "content": "Think."}, *got.output, {"role": "user", "content": "Again."}])
    assert again.output_text == "Yes.", again


def parsed_tools(client: openai.OpenAI) -> None:
    got = client.responses.parse(model="scripted", input="a", tools=[openai.pydantic_function_tool(Weather, name="get_weather")["function"] | {"type": "function"}])
    assert got.output[1].parsed_arguments == json.loads(ARGUMENTS[0]), got


def texts(client: openai.OpenAI) -> None:
    ask = {"model": "bundled", "input": PROMPT, "temperature": 0}
    got = create(client, **ask, max_output_tokens=24, include=["message.output_text.logprobs"], top_logprobs=3)
    assert got.output_text == ANSWER and got.status == "completed" and got.model == "bundled", got
    logprobs = got.output[0].content[0].logprobs
    assert len(logprobs) == got.usage.output_tokens and all(len(e.top_logprobs) == 3 for e in logprobs), got
    chat = client.chat.completions.create(model="bundled", messages=[{"role": "user", "content": PROMPT}], temperature=0)
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens) == (got.usage.input_tokens, got.usage.output_tokens), (chat, got)
    cut = create(client, **ask, max_output_tokens=3)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens" and cut.usage.output_tokens == 3, cut
    items = [{"role": "developer", "content": "Answer questions."}, {"type": "message", "role": "user", "content": [
        {"type": "input_text", "text": "The password of Mira is copper-lantern."}, {"type": "input_text", "text": "What is the password of Mira?"}]}]
    assert ANSWER in create(client, **{**ask, "input": items}, reasoning={"effort": "low"}).output_text


def stored(client: openai.OpenAI) -> None:
    ask = {"model": "bundled", "temperature": 0}
    first = client.responses.create(**ask, input="The password of Mira is copper-lantern.", max_output_tokens=16)
    kept = strictly(client.responses.with_raw_response.retrieve(first.id).text)
    assert kept == first, (kept, first)
    then = create(client, **ask, input="What is the password of Mira?", previous_response_id=first.id, max_output_tokens=24)
    assert "copper-lantern" in then.output_text, then
    page = client.responses.input_items.with_raw_response.list(then.id).text
    items = response_item_list.ResponseItemList.model_validate_json(page, strict=True)
    known(items)
    assert [i.role for i in items.data] == ["user", "assistant", "user"] and not items.has_more, items
    client.responses.delete(first.id)
    raises(openai.NotFoundError, "response_id", client.responses.retrieve, response_id=first.id)
    raises(openai.NotFoundError, "response_id", client.responses.delete, response_id=first.id)
    raises(openai.BadRequestError, "previous_response_id", client.responses.create, **ask, input="a", previous_response_id=then.id)
    unkept = client.responses.create(**ask, input="a", max_output_tokens=1, store=False)
    raises(openai.NotFoundError, "response_id", client.responses.retrieve, response_id=unkept.id)


class Secret(pydantic.BaseModel):
    """Short: the small model would go on without limits."""
    name: typing.Literal["Mira", "Tom"]
    words: list[typing.Literal["copper", "lantern"]] = pydantic.Field(max_length=2, min_length=1)


def parsed(client: openai.OpenAI) -> None:
    ask = {"model": "bundled", "input": PROMPT, "temperature": 1}
    got = client.responses.parse(**ask, text_format=Secret, extra_body={"seed": 1})
    assert isinstance(got.output_parsed, Secret) and 1 <= len(got.output_parsed.words) <= 2, got
    assert json.loads(create(client, **ask, extra_body={"seed": 1}, text={"format": {"type": "json_schema", "name": "s", "schema": {
        "type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}}}).output_text)["a"] in (1, 2)
    tool = {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"]}}
    for choice in "required", {"type": "function", "name": "look_up"}:
        call = create(client, **ask, tools=[tool], tool_choice=choice, parallel_tool_calls=False, extra_body={"seed": 1})
        assert call.output[0].name == "look_up" and json.loads(call.output[0].arguments)["unit"] in ("C", "F"), call


def errors(client: openai.OpenAI) -> None:
    make, ask = client.responses.create, {"model": "bundled", "input": "a"}
    raises(openai.BadRequestError, "temperature", make, **ask, temperature=-1)
    raises(openai.BadRequestError, "max_output_tokens", make, **ask, max_output_tokens=10**9, stream=True)
    raises(openai.BadRequestError, "input", make, model="bundled", input=[])
    image = [{"role": "user", "content": [{"type": "input_image", "image_url": "http://a/b.png"}]}]
    assert "input_image" in raises(openai.BadRequestError, "input", make, model="bundled", input=image)
    assert "web_search" in raises(openai.BadRequestError, "tools", make, **ask, tools=[{"type": "web_search"}])
    raises(openai.BadRequestError, "background", make, **ask, background=True)
    raises(openai.NotFoundError, "model", make, model="nobody", input="a")


def main() -> None:
    client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="test-key", max_retries=0, timeout=120)
    scripted = client.models.list().data[0].id == "scripted"
    for check in (calls, thoughts, parsed_tools) if scripted else (texts, stored, parsed, errors):
        check(client)
    print("clients: python", openai.__version__, "passed with responses,", "scripted" if scripted else "bundled")


if __name__ == "__main__":
    main()
