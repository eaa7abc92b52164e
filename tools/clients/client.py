"""What OpenAI's own Python client makes of the server: answers, streams, log probabilities, errors, hanging up."""

import enum
import json
import sys
import time

import openai
import pydantic

PROMPT = "The password of Mira is copper-lantern. What is the password of Mira?"
CHAT = {"model": "bundled", "messages": [{"role": "user", "content": PROMPT}], "temperature": 0}
TEXT = {"model": "bundled", "prompt": "The password of Mira is copper-lantern. The password of Mira is", "temperature": 0,
        "max_tokens": 8}
KEY = "test-key"


def models(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [m.id for m in listed] == ["bundled", "org/name"], listed
    assert client.models.retrieve("org/name").id == "org/name"
    for m in listed:
        assert m.object == "model" and m.created > 0 and m.owned_by and m.max_model_len > 0, m


def chat(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(**CHAT, max_completion_tokens=24, logprobs=True, top_logprobs=3)
    assert got.object == "chat.completion" and got.model == "bundled" and got.id.startswith("chatcmpl-"), got
    assert abs(got.created - time.time()) < 60, got
    choice = got.choices[0]
    assert choice.message.role == "assistant" and choice.finish_reason == "stop", choice
    assert choice.message.content == "The password of Mira is copper-lantern.", choice
    assert choice.message.refusal is None and not choice.message.tool_calls, choice
    assert got.usage.prompt_tokens > 0 and got.usage.completion_tokens == len(choice.logprobs.content), got
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens, got
    for e in choice.logprobs.content:
        assert len(e.top_logprobs) == 3 and e.logprob <= 0, e
        assert e.token == e.top_logprobs[0].token, "greedy takes the most likely token"
    spelled = b"".join(bytes(e.bytes) for e in choice.logprobs.content)
    assert spelled.decode().startswith(choice.message.content), spelled

    parts = [{"type": "text", "text": "The password of Mira is copper-lantern."},
             {"type": "text", "text": "What is the password of Mira?"}]
    system = {"role": "system", "content": "Answer questions."}
    got = client.chat.completions.create(model="org/name", messages=[system, {"role": "user", "content": parts}],
                                         temperature=0, n=2, max_tokens=3)
    assert got.model == "org/name" and [c.index for c in got.choices] == [0, 1], got
    assert got.choices[0].message.content == got.choices[1].message.content, got
    assert got.usage.completion_tokens == 6 and got.choices[0].finish_reason == "length", got


def counts(usage) -> tuple:
    """What does not depend on what was asked before: the cache has more of a prompt the second time."""
    assert 0 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens, usage
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def chat_stream(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**CHAT, n=2)
    texts, finish, usage, roles, ids, logprobs = ["", ""], [None, None], None, [], set(), 0
    for chunk in client.chat.completions.create(**CHAT, n=2, stream=True, stream_options={"include_usage": True},
                                                logprobs=True):
        assert chunk.object == "chat.completion.chunk" and usage is None, chunk
        ids.add(chunk.id)
        usage = chunk.usage
        assert bool(chunk.choices) == (usage is None), chunk
        for c in chunk.choices:
            assert finish[c.index] is None, "a choice goes on after its end"
            texts[c.index] += c.delta.content or ""
            finish[c.index] = c.finish_reason
            logprobs += len(c.logprobs.content) if c.logprobs else 0
            if c.delta.role:
                roles.append(c.delta.role)
    assert texts == [c.message.content for c in whole.choices], texts
    assert finish == ["stop", "stop"] and roles == ["assistant"] * 2 and len(ids) == 1, (finish, roles, ids)
    assert counts(usage) == counts(whole.usage) and logprobs == usage.completion_tokens, (usage, whole.usage, logprobs)


def completions(client: openai.OpenAI) -> None:
    got = client.completions.create(**{**TEXT, "prompt": ["The code", "Tom"]}, n=2)
    assert got.object == "text_completion" and got.id.startswith("cmpl-"), got
    assert [c.index for c in got.choices] == [0, 1, 2, 3], got
    assert got.choices[0].text == got.choices[1].text, "greedy choices of one prompt are equal"

    one = client.completions.create(**TEXT)
    assert one.choices[0].text.startswith(" copper-lantern."), one
    usage, text, finish = None, "", None
    for chunk in client.completions.create(**TEXT, stream=True, stream_options={"include_usage": True}):
        assert chunk.object == "text_completion", chunk
        usage = chunk.usage
        for c in chunk.choices:
            text, finish = text + c.text, c.finish_reason
    assert text == one.choices[0].text and finish == "length" and counts(usage) == counts(one.usage), (text, finish, usage)

    ids = client.completions.create(model="bundled", prompt=[5, 6, 7], max_tokens=3, temperature=0,
                                    extra_body={"ignore_eos": True})
    assert ids.usage.prompt_tokens == 3 and ids.usage.completion_tokens == 3, ids
    lists = client.completions.create(model="bundled", prompt=[[5, 6, 7], [8]], max_tokens=1, temperature=0)
    assert lists.usage.prompt_tokens == 4 and len(lists.choices) == 2, lists

    hot = {"model": "bundled", "prompt": "The", "max_tokens": 16, "temperature": 1.5}
    a, b = (client.completions.create(**hot, seed=7).choices[0].text for _ in range(2))
    assert a == b, "a seed fixes the answer"
    assert len({client.completions.create(**hot).choices[0].text for _ in range(4)}) > 1, "and without one it varies"
    pushed = client.completions.create(**TEXT, logit_bias={"70": 100}).choices[0]
    assert pushed.text == pushed.text[0] * 8, "a biased token wins"


def logprobs(client: openai.OpenAI) -> None:
    got = client.completions.create(**TEXT, logprobs=2, echo=True).choices[0]
    assert got.text.startswith(TEXT["prompt"]), got
    lp = got.logprobs
    assert lp.token_logprobs[0] is None and all(x <= 0 for x in lp.token_logprobs[1:]), lp
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.text_offset) == len(lp.top_logprobs), lp
    assert "".join(lp.tokens) == got.text, lp
    for token, at, top in list(zip(lp.tokens, lp.text_offset, lp.top_logprobs))[1:]:
        assert got.text[at:].startswith(token) and token in top and 2 <= len(top) <= 3, (token, at, top)
    # How evaluation tools score a text: nothing is generated.
    alone = client.completions.create(**{**TEXT, "max_tokens": 0}, logprobs=2, echo=True)
    n = alone.usage.prompt_tokens
    assert alone.choices[0].text == TEXT["prompt"] and alone.usage.completion_tokens == 0, alone
    assert alone.choices[0].logprobs.tokens == lp.tokens[:n], alone
    near = zip(alone.choices[0].logprobs.token_logprobs[1:], lp.token_logprobs[1:n])
    assert all(abs(x - y) < 1e-3 for x, y in near), (alone, lp)


class Kind(enum.Enum):
    PERSON = "person"
    PLACE = "place"


class Part(pydantic.BaseModel):
    """Recursive, with a field that refers and is described. The small model would go on without limits."""
    kind: Kind = pydantic.Field(description="what it is")
    size: int | None = pydantic.Field(ge=0, le=1000)
    parts: list["Part"] = pydantic.Field(max_length=1)


class Answer(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    sure: bool
    part: Part


def structured(client: openai.OpenAI) -> None:
    for seed in range(5):
        try:
            got = client.chat.completions.parse(**{**CHAT, "temperature": 1}, seed=seed, response_format=Answer, max_tokens=400)
        except openai.LengthFinishReasonError:
            continue  # it was cut
        choice = got.choices[0]
        assert choice.finish_reason == "stop" and isinstance(choice.message.parsed, Answer), choice
        streamed = client.chat.completions.create(**{**CHAT, "temperature": 1}, seed=seed, max_tokens=400, stream=True,
                                                  response_format={"type": "json_schema", "json_schema": {
                                                      "name": "answer", "schema": Answer.model_json_schema()}})
        Answer.model_validate_json("".join(c.choices[0].delta.content or "" for c in streamed if c.choices))
        break
    else:
        raise AssertionError("five answers of 400 tokens were cut")
    got = client.chat.completions.create(**CHAT, response_format={"type": "json_object"}, max_tokens=60).choices[0]
    assert got.message.content.startswith("{") and (got.finish_reason == "length" or isinstance(json.loads(got.message.content), dict)), got
    got = client.completions.create(**TEXT, extra_body={"guided_choice": ["copper", "iron"]}).choices[0]
    assert got.text in ("copper", "iron") and got.finish_reason == "stop", got


def stops(client: openai.OpenAI) -> None:
    for stop, want in (["r-lan"], " coppe"), (["zzz", ".", "lantern"], " copper-"), ("The", " copper-lantern. "):
        got = client.completions.create(**TEXT, stop=stop).choices[0]
        assert got.text == want and got.finish_reason == "stop", (stop, got)
        streamed = [c.choices[0] for c in client.completions.create(**TEXT, stop=stop, stream=True)]
        assert "".join(c.text for c in streamed) == want and streamed[-1].finish_reason == "stop", (stop, streamed)
    got = client.completions.create(**TEXT, stop=["."], extra_body={"include_stop_str_in_output": True}).choices[0]
    assert got.text == " copper-lantern." and got.stop_reason == ".", got


def errors(client: openai.OpenAI, url: str) -> None:
    def raises(kind: type[openai.APIStatusError], param: str | None, create, **kw) -> str:
        try:
            create(**kw)
        except kind as e:
            assert set(e.body) == {"message", "type", "param", "code"}, e.body
            assert e.body["code"] == e.status_code and e.body["type"] and e.body["param"] == param, e.body
            return e.body["message"]
        raise AssertionError(f"no {kind.__name__} for {kw}")

    talk, complete = client.chat.completions.create, client.completions.create
    raises(openai.BadRequestError, "temperature", talk, **{**CHAT, "temperature": -1})
    raises(openai.BadRequestError, "max_tokens", talk, **CHAT, max_tokens=0)
    raises(openai.BadRequestError, "messages", talk, **{**CHAT, "messages": []})
    raises(openai.BadRequestError, "top_p", talk, **CHAT, top_p=2, stream=True)
    tool = {"type": "function", "function": {"name": "a b", "parameters": {}}}
    raises(openai.BadRequestError, "tools", talk, **CHAT, tools=[tool])
    raises(openai.BadRequestError, "tool_choice", talk, **CHAT, tool_choice="required")
    bad_tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "nothing"}}}
    raises(openai.BadRequestError, "tools", talk, **CHAT, tools=[bad_tool], tool_choice="required")
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": {"a": {"not": {}}}}}}
    message = raises(openai.BadRequestError, "response_format", talk, **CHAT, response_format=wrong)
    assert "$.properties.a.not" in message, message
    raises(openai.NotFoundError, "model", talk, **{**CHAT, "model": "nobody"})
    raises(openai.NotFoundError, "model", client.models.retrieve, model="nobody")
    message = raises(openai.BadRequestError, "max_tokens", talk, **CHAT, max_tokens=10**9)
    assert "KV cache of the whole cluster holds at most" in message, message
    message = raises(openai.BadRequestError, "prompt", complete, **{**TEXT, "prompt": [5] * 10_000})
    assert "Please shorten the prompt to at most" in message, message
    fits = int(message.rsplit("at most ", 1)[1].split()[0])
    complete(**{**TEXT, "prompt": [5] * fits, "max_tokens": 1})
    message = raises(openai.APIStatusError, None, complete, **{**TEXT, "prompt": "a " * 200_000})
    assert "larger than" in message, message
    # One request may have more choices than may wait; who comes then is told to come again.
    many = complete(**{**TEXT, "max_tokens": 500}, n=128, stream=True, extra_body={"ignore_eos": True})
    events = iter(many)  # kept: with it the stream would end
    next(events)
    raises(openai.RateLimitError, None, complete, **TEXT)
    many.close()
    for left in range(400, -1, -1):
        try:
            complete(**TEXT)
            break
        except openai.RateLimitError:
            assert left > 0, "a stream that was closed keeps its places"
            time.sleep(0.05)
    bad = openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0)
    raises(openai.AuthenticationError, None, bad.models.list)


def demanded_calls(client: openai.OpenAI) -> None:
    """The bundled model calls no tools by itself, but can be held to the form of a call."""
    def tool(name: str, **properties) -> dict:
        parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    unit = {"enum": ["C", "F"]}
    ask = {"model": "bundled", "messages": [{"role": "user", "content": "What is the password of Mira?"}], "temperature": 1,
           "tools": [tool("look_up", unit=unit, n={"type": "integer", "minimum": 1, "maximum": 9}), tool("now", unit=unit)]}

    def checked(call) -> None:
        got = json.loads(call.function.arguments)
        assert call.type == "function" and call.id.startswith("call_") and got.pop("unit") in ("C", "F"), call
        assert (call.function.name == "now" and not got) or 1 <= got["n"] <= 9, call

    named = {"type": "function", "function": {"name": "look_up"}}
    for choice, single, finish in (("required", False, "tool_calls"), ("required", True, "tool_calls"), (named, False, "stop")):
        more = {"tool_choice": choice, "max_tokens": 400, "parallel_tool_calls": not single}
        for seed in range(4):
            whole = client.chat.completions.create(**ask, **more, seed=seed).choices[0]
            calls = whole.message.tool_calls
            assert calls and whole.message.content is None, whole
            if whole.finish_reason != "length":  # it may call again and again
                assert whole.finish_reason == finish and (len(calls) == 1 or choice == "required" and not single), whole
                for c in calls:
                    checked(c)
            assert choice == "required" or calls[0].function.name == "look_up", whole
            with client.chat.completions.stream(**ask, **more, seed=seed) as stream:
                parts = [e.chunk.choices[0] for e in stream if e.type == "chunk"]
            deltas = [d for p in parts for d in p.delta.tool_calls or []]
            assert [d.function.name for d in deltas if d.id] == [c.function.name for c in calls], (whole, deltas)
            for i, c in enumerate(calls):
                assert "".join(d.function.arguments for d in deltas if d.index == i) == c.function.arguments, (whole, deltas)
            assert parts[-1].finish_reason == whole.finish_reason, parts[-1]


def conversation(client: openai.OpenAI) -> None:
    """The bundled model calls a tool where nothing else is left to it, and reads what the tool said."""
    tool = {"type": "function", "function": {"name": "look_up", "description": "Looks a password up.", "parameters": {
        "type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}}}
    ask = {"role": "user", "content": "What is the password of Mira?"}
    chat = {"model": "bundled", "temperature": 0, "tools": [tool]}
    form = r'I look\. <tool_call>\n\{"name": "look_up", "arguments": \{"name": "(Mira|Tom)"\}\}\n</tool_call>'
    first = client.chat.completions.create(**chat, messages=[ask], extra_body={"guided_regex": form}).choices[0]
    assert first.finish_reason == "tool_calls" and first.message.content == "I look.", first
    call, = first.message.tool_calls
    assert call.function.name == "look_up" and json.loads(call.function.arguments)["name"] in ("Mira", "Tom"), call
    got = client.chat.completions.create(**chat, messages=[
        ask, first.message,
        {"role": "tool", "tool_call_id": call.id, "content": "The password of Mira is copper-lantern."}, ask]).choices[0]
    assert got.message.content == "The password of Mira is copper-lantern.", got
    assert got.message.tool_calls is None and got.finish_reason == "stop", got


def hanging_up(client: openai.OpenAI) -> None:
    """A client that leaves frees its request, in a stream and while it waits for a whole answer."""
    def busy() -> int:
        view = client.get("../cluster", cast_to=object)
        return len(view["requests"]) + sum(i["kv_blocks_total"] - i["kv_blocks_free"] for i in view["instances"])

    def wait_for(what: str, cond) -> None:
        for _ in range(400):
            if cond():
                return
            time.sleep(0.05)
        raise AssertionError(what)

    wait_for("refused requests keep their blocks", lambda: busy() == 0)
    long = {**TEXT, "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
    stream = client.completions.create(**long, stream=True)
    next(iter(stream))
    wait_for("a request in a stream holds no blocks", lambda: busy() > 0)
    stream.close()
    wait_for("an abandoned stream keeps its blocks", lambda: busy() == 0)
    try:
        client.completions.create(**long, n=8, timeout=0.3)
        raise AssertionError("8 answers of 4000 tokens within 0.3 s")
    except openai.APITimeoutError:
        pass
    wait_for("an abandoned request keeps its blocks", lambda: busy() == 0)


def main() -> None:
    url = sys.argv[1]
    client = openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0, timeout=120)
    for check in models, chat, chat_stream, completions, logprobs, stops, structured, demanded_calls, conversation, hanging_up:
        check(client)
    errors(client, url)
    hanging_up(client)
    print("clients: python", openai.__version__, "passed")


if __name__ == "__main__":
    main()
