"""What Anthropic's own Python client makes of messages: whole, streamed, by its accumulator, parsed, with tools and thoughts, counted,
refused; and whether its types, taken strictly, are what the server sends. Runs on scripted answers, which call tools, and on the
bundled model."""

import json
import sys
import typing

import anthropic
import pydantic
from anthropic.types import ErrorResponse, Message, MessageTokensCount, ModelInfo, RawMessageStreamEvent
from responses import known

PROMPT = "The password of Mira is copper-lantern. What is the password of Mira?"
ANSWER = "The password of Mira is copper-lantern."
EVENT = pydantic.TypeAdapter(RawMessageStreamEvent)
TEXT = {"type": "string"}
TOOLS = [{"name": "get_weather", "description": "The weather.", "input_schema": {
    "type": "object", "properties": {"city": TEXT, "note": TEXT}, "required": ["city", "note"]}},
    {"name": "get_time", "input_schema": {"type": "object", "properties": {}}}]
QUESTION = {"role": "user", "content": "What is the weather in Oslo, and what time is it?"}
ASK = {"model": "scripted", "max_tokens": 1000, "messages": [QUESTION], "tools": TOOLS}
INPUTS = [{"city": "Oslo", "note": "<é>"}, {}]


def strictly(kind: type[pydantic.BaseModel], text: str) -> pydantic.BaseModel:
    got = kind.model_validate_json(text, strict=True)
    known(got)
    return got


def create(client: anthropic.Anthropic, **body) -> Message:
    """Makes one whole, one in events, and one in events that the client puts together. They are to be the same."""
    raw = client.messages.with_raw_response.create(**body)
    whole = strictly(Message, raw.text())
    assert whole.id.startswith("msg_") and raw.headers["request-id"] == "req_" + whole.id.removeprefix("msg_"), (whole, raw.headers)
    with client.messages.with_streaming_response.create(**body, stream=True) as stream:
        lines = [line for line in stream.iter_lines() if line]
    kinds = []
    for name, data in zip(lines[::2], lines[1::2], strict=True):
        kind = json.loads(data.removeprefix("data: "))["type"]
        assert name == f"event: {kind}", (name, data)
        if kind != "ping":
            known(EVENT.validate_json(data.removeprefix("data: "), strict=True))
        kinds.append(kind)
    assert kinds[:2] == ["message_start", "ping"] and kinds[-2:] == ["message_delta", "message_stop"], kinds
    with client.messages.stream(**body) as stream:
        for event in stream:
            if event.type == "text":
                assert event.snapshot.endswith(event.text), event
        final = stream.get_final_message()
    assert alike(final) == alike(whole), (final, whole)
    return whole


def alike(got: Message) -> dict:
    kept = got.model_dump(exclude={"id"})
    usage = kept["usage"]  # the cache has more of a prompt the second time
    usage["input_tokens"] += usage.pop("cache_read_input_tokens")
    for block in kept["content"]:
        block.pop("id", None)
        block.pop("parsed_output", None)
    return kept


def calls(client: anthropic.Anthropic) -> None:
    first = create(client, **ASK, system="Be brief.")
    assert [b.type for b in first.content] == ["text", "tool_use", "tool_use"] and first.stop_reason == "tool_use", first
    assert first.content[0].text == "Let me see." and [b.input for b in first.content[1:]] == INPUTS, first
    assert [b.name for b in first.content[1:]] == ["get_weather", "get_time"] and first.content[1].id.startswith("toolu_"), first
    results = [{"type": "tool_result", "tool_use_id": b.id, "content": text} for b, text in
               zip(first.content[1:], ("4", [{"type": "text", "text": "noon"}]))]
    talk = [QUESTION, first.to_param(), {"role": "user", "content": results}]
    last = create(client, **{**ASK, "messages": talk})
    assert last.content[0].text == "It is 4 degrees at noon." and last.stop_reason == "end_turn", last
    one = create(client, **ASK, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert len(one.content) == 2, one
    none = create(client, **ASK, tool_choice={"type": "none"})
    assert none.content[0].text == "No tools.", none


def run(client: anthropic.Anthropic) -> None:
    """The client's own loop runs the functions and sends what they return."""
    ran = []

    @anthropic.beta_tool
    def get_weather(city: str, note: str) -> str:
        """The weather."""
        ran.append((city, note))
        return "4"

    @anthropic.beta_tool
    def get_time() -> str:
        """The time."""
        return "noon"

    for stream in False, True:
        runner = client.beta.messages.tool_runner(model="scripted", max_tokens=1000, messages=[QUESTION], tools=[get_weather, get_time], stream=stream)
        assert runner.until_done().content[0].text == "It is 4 degrees at noon."
    assert ran == [("Oslo", "<é>")] * 2, ran


def thoughts(client: anthropic.Anthropic) -> None:
    ask = {"model": "scripted", "max_tokens": 2000, "messages": [{"role": "user", "content": "Think."}]}
    got = create(client, **ask, thinking={"type": "enabled", "budget_tokens": 1024})
    assert [b.type for b in got.content] == ["thinking", "text"] and got.content[0].thinking == "Hm." and got.content[1].text == "Yes.", got
    assert got.content[0].signature and 0 < got.usage.output_tokens_details.thinking_tokens < got.usage.output_tokens, got
    hidden = create(client, **ask, thinking={"type": "adaptive", "display": "omitted"})
    assert hidden.content[0].thinking == "" and hidden.content[0].signature and hidden.content[1].text == "Yes.", hidden
    again = ask["messages"] + [hidden.to_param(), {"role": "user", "content": "Again."}]
    assert create(client, **{**ask, "messages": again}).content[1].text == "Yes."


def texts(client: anthropic.Anthropic) -> None:
    ask = {"model": "bundled", "max_tokens": 24, "messages": [{"role": "user", "content": PROMPT}], "extra_body": {"temperature": 0}}
    got = create(client, **ask)
    assert got.content[0].text == ANSWER and got.stop_reason == "end_turn" and got.model == "bundled", got
    counted = strictly(MessageTokensCount, client.messages.with_raw_response.count_tokens(model="bundled", messages=ask["messages"]).text())
    assert counted.input_tokens == got.usage.input_tokens + got.usage.cache_read_input_tokens, (counted, got)
    usages = [client.messages.create(**ask).usage for _ in range(3)]  # at one of two instances at least twice
    assert any(u.cache_read_input_tokens for u in usages) and all(u.input_tokens > 0 for u in usages), usages
    cut = create(client, **{**ask, "max_tokens": 3})
    assert cut.stop_reason == "max_tokens" and cut.usage.output_tokens == 3, cut
    stopped = create(client, **ask, stop_sequences=["zzz", "r-lan"])
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == "r-lan" and stopped.content[0].text.endswith(" coppe"), stopped
    blocks = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}} for text in PROMPT.split(". ")]
    blocks[0]["text"] += "."
    assert ANSWER in create(client, **{**ask, "messages": [{"role": "user", "content": blocks}]}, system="Answer questions.").content[0].text
    begun = ask["messages"] + [{"role": "assistant", "content": "The password of Mira is"}]
    assert create(client, **{**ask, "messages": begun}).content[0].text == " copper-lantern.", "the answer goes on from its beginning"
    bearer = anthropic.Anthropic(base_url=str(client.base_url), api_key=None, auth_token="test-key", max_retries=0)
    assert bearer.messages.create(**ask).content == got.content


class Secret(pydantic.BaseModel):
    """Short: the small model would go on without limits."""
    name: typing.Literal["Mira", "Tom"]
    words: list[typing.Literal["copper", "lantern"]]


def parsed(client: anthropic.Anthropic) -> None:
    ask = {"model": "bundled", "max_tokens": 200, "messages": [{"role": "user", "content": PROMPT}]}
    for seed in range(5):
        got = client.messages.create(**ask, extra_body={"seed": seed, "output_config": {"format": {"type": "json_schema", "schema": Secret.model_json_schema()}}})
        if got.stop_reason == "max_tokens":
            continue  # it was cut
        Secret.model_validate_json(got.content[0].text)
        assert isinstance(client.messages.parse(**ask, output_format=Secret, extra_body={"seed": seed}).parsed_output, Secret)
        break
    else:
        raise AssertionError("five answers of 200 tokens were cut")
    tool = {"name": "look_up", "input_schema": {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"]}}
    for choice in {"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "look_up"}:
        call = create(client, **ask, tools=[tool], tool_choice=choice, extra_body={"seed": 1})
        assert call.content[0].name == "look_up" and call.content[0].input["unit"] in ("C", "F") and call.stop_reason == "tool_use", call


def models(client: anthropic.Anthropic) -> None:
    listed = [strictly(ModelInfo, m.to_json()) for m in client.models.list(limit=1)]
    assert [m.id for m in listed] == ["bundled", "org/name"] and all(m.max_input_tokens > 0 for m in listed), listed
    assert strictly(ModelInfo, client.models.with_raw_response.retrieve("org/name").text()).display_name == "org/name"


def errors(client: anthropic.Anthropic) -> None:
    ask = {"model": "bundled", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]}

    def raises(kind: type[anthropic.APIStatusError], name: str, create, **kw) -> str:
        try:
            create(**kw)
        except kind as e:
            assert type(e) is kind and e.type == name and e.request_id == e.body["request_id"], (e, e.body)
            if name != "request_too_large":  # which their types do not have
                strictly(ErrorResponse, json.dumps(e.body))
            return e.api_message
        raise AssertionError(f"no {kind.__name__} for {kw}")

    make, bad = client.messages.create, anthropic.BadRequestError
    raises(bad, "invalid_request_error", make, **ask, extra_body={"temperature": -1})
    raises(bad, "invalid_request_error", make, **ask, extra_body={"top_p": 2}, stream=True)
    assert "at least 1" in raises(bad, "invalid_request_error", make, **{**ask, "max_tokens": 0})
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    assert "image" in raises(bad, "invalid_request_error", make, **{**ask, "messages": [{"role": "user", "content": [image]}]})
    assert "web_search" in raises(bad, "invalid_request_error", make, **ask, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    long = [{"role": "user", "content": "a b " * 8000}]
    assert "prompt is too long" in raises(bad, "invalid_request_error", make, **{**ask, "messages": long})
    assert client.messages.count_tokens(model="bundled", messages=long).input_tokens > 8000
    raises(anthropic.NotFoundError, "not_found_error", make, **{**ask, "model": "nobody"})
    raises(anthropic.NotFoundError, "not_found_error", client.models.retrieve, model_id="nobody")
    raises(anthropic.NotFoundError, "not_found_error", client.messages.batches.list)
    raises(anthropic.RequestTooLargeError, "request_too_large", make, **{**ask, "messages": [{"role": "user", "content": "a " * 200_000}]})
    stranger = anthropic.Anthropic(base_url=str(client.base_url), api_key="wrong", max_retries=0)
    raises(anthropic.AuthenticationError, "authentication_error", stranger.messages.create, **ask)
    raises(anthropic.AuthenticationError, "authentication_error", stranger.models.list)


def main() -> None:
    client = anthropic.Anthropic(base_url=sys.argv[1], api_key="test-key", max_retries=0, timeout=120)
    scripted = client.models.list().data[0].id == "scripted"
    for check in (calls, run, thoughts) if scripted else (models, texts, parsed, errors):
        check(client)
    print("clients: python, anthropic", anthropic.__version__, "passed with messages,", "scripted" if scripted else "bundled")


if __name__ == "__main__":
    main()
