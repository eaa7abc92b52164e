// What OpenAI's own JavaScript client makes of the server: answers, streams, log probabilities, errors, hanging up.
import assert from "node:assert/strict";
import OpenAI from "openai";

const url = process.argv[2];
const client = new OpenAI({ baseURL: url + "/v1", apiKey: "test-key", maxRetries: 0, timeout: 120_000 });
const question = "The password of Mira is copper-lantern. What is the password of Mira?";
const chat = { model: "bundled", messages: [{ role: "user", content: question }], temperature: 0 };
const text = {
  model: "bundled",
  prompt: "The password of Mira is copper-lantern. The password of Mira is",
  temperature: 0,
  max_tokens: 8,
};

async function models() {
  const list = await client.models.list();
  assert.deepEqual(list.data.map((m) => m.id), ["bundled", "org/name"]);
  assert.equal((await client.models.retrieve("org/name")).id, "org/name");
}

async function chats() {
  const whole = await client.chat.completions.create({ ...chat, n: 2, logprobs: true, top_logprobs: 2 });
  assert.equal(whole.object, "chat.completion");
  assert.match(whole.id, /^chatcmpl-/);
  for (const [i, c] of whole.choices.entries()) {
    assert.equal(c.index, i);
    assert.equal(c.message.content, "The password of Mira is copper-lantern.");
    assert.equal(c.message.refusal, null);
    assert.equal(c.finish_reason, "stop");
    assert.ok(c.logprobs.content.every((e) => e.top_logprobs.length === 2 && e.token === e.top_logprobs[0].token));
  }
  const tokens = whole.choices.reduce((n, c) => n + c.logprobs.content.length, 0);
  assert.equal(whole.usage.completion_tokens, tokens);

  const texts = ["", ""];
  let usage = null;
  const stream = await client.chat.completions.create({ ...chat, n: 2, stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) {
    assert.equal(usage, null, "the usage comes last");
    for (const c of chunk.choices) texts[c.index] += c.delta.content ?? "";
    usage = chunk.usage;
  }
  assert.deepEqual(texts, whole.choices.map((c) => c.message.content));
  // The cache has more of a prompt the second time.
  assert.deepEqual({ ...usage, prompt_tokens_details: null }, { ...whole.usage, prompt_tokens_details: null });
  assert.ok(usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens);

  // The client's own accumulator is stricter than a loop.
  const run = client.chat.completions.stream({ ...chat, stream_options: { include_usage: true } });
  const final = await run.finalChatCompletion();
  assert.equal(final.choices[0].message.content, texts[0]);
  assert.equal(final.choices[0].finish_reason, "stop");
}

async function completions() {
  const two = await client.completions.create({ ...text, n: 2, logprobs: 1, echo: true });
  assert.equal(two.object, "text_completion");
  assert.equal(two.choices[0].text, two.choices[1].text);
  assert.ok(two.choices[0].text.startsWith(text.prompt + " copper-lantern."));
  assert.equal(two.choices[0].logprobs.tokens.join(""), two.choices[0].text);
  assert.equal(two.choices[0].logprobs.token_logprobs[0], null);

  let got = "";
  let finish = null;
  let usage = null;
  const stream = await client.completions.create({ ...text, stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) {
    got += chunk.choices[0]?.text ?? "";
    finish = chunk.choices[0]?.finish_reason ?? finish;
    usage = chunk.usage;
  }
  assert.equal(text.prompt + got, two.choices[0].text);
  assert.equal(finish, "length");
  assert.equal(usage.completion_tokens, 8);

  const stopped = await client.completions.create({ ...text, stop: ["zzz", "r-lan"] });
  assert.equal(stopped.choices[0].text, " coppe");
  assert.equal(stopped.choices[0].finish_reason, "stop");
}

async function errors() {
  const bodyOf = async (kind, status, param, promise) => {
    await assert.rejects(promise, (e) => {
      assert.ok(e instanceof kind, `${e}`);
      assert.equal(e.status, status);
      assert.equal(e.error.code, status);
      assert.equal(e.error.param, param);
      assert.ok(e.error.message && e.error.type);
      return true;
    });
  };
  const talk = (more) => client.chat.completions.create({ ...chat, ...more });
  await bodyOf(OpenAI.BadRequestError, 400, "top_p", talk({ top_p: 2 }));
  await bodyOf(OpenAI.BadRequestError, 400, "top_p", talk({ top_p: 2, stream: true }));
  await bodyOf(OpenAI.BadRequestError, 400, "max_tokens", talk({ max_tokens: 1e9 }));
  await bodyOf(OpenAI.NotFoundError, 404, "model", talk({ model: "nobody" }));
  await bodyOf(OpenAI.APIError, 413, null, client.completions.create({ ...text, prompt: "a ".repeat(200_000) }));
  // One request may have more choices than may wait; who comes then is told to come again.
  const many = await client.completions.create({ ...text, n: 128, max_tokens: 500, ignore_eos: true, stream: true });
  await many[Symbol.asyncIterator]().next();
  await bodyOf(OpenAI.RateLimitError, 429, null, client.completions.create(text));
  many.controller.abort();
  for (let left = 400; ; left--) {
    try {
      await client.completions.create(text);
      break;
    } catch (e) {
      assert.ok(e instanceof OpenAI.RateLimitError && left > 0, `${e}`);
      await new Promise((done) => setTimeout(done, 50));
    }
  }
  const stranger = new OpenAI({ baseURL: url + "/v1", apiKey: "wrong", maxRetries: 0 });
  await bodyOf(OpenAI.AuthenticationError, 401, null, stranger.models.list());
}

// A client that leaves frees its request, in a stream and while it waits for a whole answer.
async function hangingUp() {
  const long = { ...text, max_tokens: 4000, ignore_eos: true };
  const busy = async () => {
    const view = await (await fetch(url + "/cluster", { headers: { authorization: "Bearer test-key" } })).json();
    return view.requests.length + view.instances.reduce((n, i) => n + i.kv_blocks_total - i.kv_blocks_free, 0);
  };
  const until = async (what, cond) => {
    for (let i = 0; i < 400; i++) {
      if (cond(await busy())) return;
      await new Promise((r) => setTimeout(r, 50));
    }
    assert.fail(what);
  };
  await until("refused requests keep their blocks", (n) => n === 0);
  const stream = await client.completions.create({ ...long, stream: true });
  for await (const _ of stream) break; // the client hangs up
  await until("an abandoned stream keeps its blocks", (n) => n === 0);

  const abort = new AbortController();
  const answer = client.completions.create(long, { signal: abort.signal });
  await until("the request does not begin", (n) => n > 0);
  abort.abort();
  await assert.rejects(answer, OpenAI.APIUserAbortError);
  await until("an abandoned request keeps its blocks", (n) => n === 0);
}

for (const check of [models, chats, completions, errors, hangingUp]) await check();
console.log("clients: javascript passed");
