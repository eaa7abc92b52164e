// What Anthropic's own JavaScript client makes of messages: whole, by its accumulator, tools, models, errors, hanging up. Runs on
// scripted answers, which call tools, and on the bundled model.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.argv[2], apiKey: "test-key", maxRetries: 0, timeout: 120_000 });
const question = "The password of Mira is copper-lantern. What is the password of Mira?";
const text = { model: "bundled", max_tokens: 24, messages: [{ role: "user", content: question }], temperature: 0 };

// A whole answer is what its events come to.
async function create(body) {
  const whole = await client.messages.create(body);
  const run = client.messages.stream(body);
  let words = "";
  run.on("text", (piece) => (words += piece));
  const final = await run.finalMessage();
  const brief = (m) => [m.content.map((b) => ({ ...b, id: undefined })), m.stop_reason, m.stop_sequence, m.usage.output_tokens];
  assert.deepEqual(brief(final), brief(whole));
  assert.equal(words, whole.content.filter((b) => b.type === "text").map((b) => b.text).join(""));
  return whole;
}

async function tools() {
  const schema = { type: "object", properties: { city: { type: "string" }, note: { type: "string" } } };
  const ask = {
    model: "scripted",
    max_tokens: 1000,
    messages: [{ role: "user", content: "What is the weather in Oslo, and what time is it?" }],
    tools: [{ name: "get_weather", input_schema: schema }, { name: "get_time", input_schema: { type: "object" } }],
  };
  const first = await create(ask);
  assert.equal(first.stop_reason, "tool_use");
  assert.deepEqual(first.content.map((b) => b.text ?? [b.name, b.input]), [
    "Let me see.",
    ["get_weather", { city: "Oslo", note: "<é>" }],
    ["get_time", {}],
  ]);
  const results = ["4", "noon"].map((content, i) => ({ type: "tool_result", tool_use_id: first.content[i + 1].id, content }));
  const messages = [...ask.messages, { role: "assistant", content: first.content }, { role: "user", content: results }];
  assert.equal((await create({ ...ask, messages })).content[0].text, "It is 4 degrees at noon.");
}

async function texts() {
  const got = await create(text);
  assert.deepEqual(got.content, [{ type: "text", text: "The password of Mira is copper-lantern." }]);
  assert.match(got._request_id, /^req_/);
  const counted = await client.messages.countTokens({ model: text.model, messages: text.messages });
  assert.equal(counted.input_tokens, got.usage.input_tokens + got.usage.cache_read_input_tokens);
  const stopped = await create({ ...text, stop_sequences: ["r-lan"] });
  assert.deepEqual([stopped.stop_reason, stopped.stop_sequence], ["stop_sequence", "r-lan"]);
  const ids = [];
  for await (const model of client.models.list({ limit: 1 })) ids.push(model.id);
  assert.deepEqual(ids, ["bundled", "org/name"]);
}

async function errors() {
  const refused = async (kind, type, promise) => {
    await assert.rejects(promise, (e) => {
      assert.ok(e instanceof kind, `${e}`);
      assert.deepEqual([e.error.type, e.error.error.type], ["error", type]);
      assert.equal(e.requestID, e.error.request_id);
      return true;
    });
  };
  await refused(Anthropic.BadRequestError, "invalid_request_error", client.messages.create({ ...text, top_p: 2 }));
  await refused(Anthropic.BadRequestError, "invalid_request_error", client.messages.stream({ ...text, top_p: 2 }).finalMessage());
  await refused(Anthropic.NotFoundError, "not_found_error", client.messages.create({ ...text, model: "nobody" }));
  const stranger = new Anthropic({ baseURL: process.argv[2], apiKey: "wrong", maxRetries: 0 });
  await refused(Anthropic.AuthenticationError, "authentication_error", stranger.messages.create(text));
}

// A client that leaves a stream frees its request.
async function hangingUp() {
  const busy = async () => {
    const view = await (await fetch(process.argv[2] + "/cluster", { headers: { "x-api-key": "test-key" } })).json();
    return view.requests.length;
  };
  const stream = await client.messages.create({ ...text, max_tokens: 4000, ignore_eos: true, stream: true });
  for await (const event of stream) if (event.type === "content_block_delta") break;
  for (let left = 400; (await busy()) > 0; left--) {
    assert.ok(left > 0, "an abandoned stream keeps running");
    await new Promise((done) => setTimeout(done, 50));
  }
}

const scripted = (await client.models.list()).data[0].id === "scripted";
for (const check of scripted ? [tools] : [texts, errors, hangingUp]) await check();
console.log("clients: javascript, anthropic passed with messages,", scripted ? "scripted" : "bundled");
