"""Completions, chat, streaming and errors through OpenAI's own Python client."""

import sys

import openai

PROMPT = "The code of Mira is 4821. What is the code of Mira?"


def chat(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(
        model="bundled", messages=[{"role": "user", "content": PROMPT}], max_tokens=24, temperature=0,
        logprobs=True, top_logprobs=3)
    assert got.object == "chat.completion" and got.model == "bundled", got
    choice = got.choices[0]
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length"), choice
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    first = choice.logprobs.content[0]
    assert len(first.top_logprobs) == 3 and first.logprob <= 0
    assert first.token == first.top_logprobs[0].token, "greedy takes the most likely token"

    text, finish, usage, roles = "", None, None, []
    for chunk in client.chat.completions.create(
            model="bundled", messages=[{"role": "user", "content": PROMPT}], max_tokens=24, temperature=0,
            stream=True, stream_options={"include_usage": True}):
        if chunk.usage:
            usage = chunk.usage
        for c in chunk.choices:
            text += c.delta.content or ""
            finish = c.finish_reason or finish
            if c.delta.role:
                roles.append(c.delta.role)
    assert text == choice.message.content, (text, choice.message.content)
    assert finish == choice.finish_reason and roles == ["assistant"]
    assert usage.completion_tokens == got.usage.completion_tokens


def completions(client: openai.OpenAI) -> None:
    got = client.completions.create(model="bundled", prompt=["The code", "Tom"], max_tokens=5, temperature=0, n=2,
                                    logprobs=2, echo=True)
    assert [c.index for c in got.choices] == [0, 1, 2, 3]
    assert got.choices[0].text.startswith("The code") and got.choices[2].text.startswith("Tom")
    assert got.choices[0].text == got.choices[1].text, "greedy choices of one prompt are equal"
    lp = got.choices[0].logprobs
    assert lp.token_logprobs[0] is None and len(lp.tokens) == len(lp.token_logprobs) == len(lp.text_offset)
    assert "".join(lp.tokens[1:]) and all(x <= 0 for x in lp.token_logprobs[1:])

    ids = client.completions.create(model="bundled", prompt=[5, 6, 7], max_tokens=3, temperature=0,
                                    extra_body={"ignore_eos": True})
    assert ids.usage.prompt_tokens == 3 and ids.usage.completion_tokens == 3
    assert ids.choices[0].finish_reason == "length"

    a = client.completions.create(model="bundled", prompt="The", max_tokens=16, temperature=1.5, seed=7)
    b = client.completions.create(model="bundled", prompt="The", max_tokens=16, temperature=1.5, seed=7)
    assert a.choices[0].text == b.choices[0].text, "a seed fixes the answer"

    whole = client.completions.create(model="bundled", prompt="The code of Mira is", max_tokens=16, temperature=0)
    text = whole.choices[0].text
    if len(text) > 3:
        stop = text[2:4]
        cut = client.completions.create(model="bundled", prompt="The code of Mira is", max_tokens=16, temperature=0,
                                        stop=[stop])
        assert cut.choices[0].text == text[: text.index(stop)] and cut.choices[0].finish_reason == "stop"


def errors(client: openai.OpenAI, url: str) -> None:
    def raises(kind, **kw):
        try:
            client.chat.completions.create(**{"model": "bundled", "messages": [{"role": "user", "content": "x"}], **kw})
        except kind as e:
            body = e.body if isinstance(e.body, dict) else {}
            assert body.get("message") and body.get("type"), (kind, e.body)
            return e
        raise AssertionError(f"no {kind.__name__} for {kw}")

    raises(openai.BadRequestError, temperature=-1)
    raises(openai.BadRequestError, max_tokens=0)
    raises(openai.BadRequestError, messages=[])
    assert "tokens" in str(raises(openai.BadRequestError, max_tokens=10**9))
    raises(openai.NotFoundError, model="nobody")
    bad = openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0)
    try:
        bad.models.list()
        raise AssertionError("a wrong key was accepted")
    except openai.AuthenticationError:
        pass


def main() -> None:
    url = sys.argv[1]
    client = openai.OpenAI(base_url=url + "/v1", api_key="test-key", max_retries=0, timeout=120)
    assert [m.id for m in client.models.list()] == ["bundled"]
    chat(client)
    completions(client)
    errors(client, url)
    print("clients: python", openai.__version__, "passed")


if __name__ == "__main__":
    main()
