// Completions, chat, streaming and errors through OpenAI's own JavaScript client.
import assert from "node:assert/strict";
import OpenAI from "openai";

const url = process.argv[2];
const client = new OpenAI({ baseURL: url + "/v1", apiKey: "test-key", maxRetries: 0, timeout: 120_000 });
const messages = [{ role: "user", content: "The code of Mira is 4821. What is the code of Mira?" }];
const base = { model: "bundled", messages, max_tokens: 24, temperature: 0 };

const models = await client.models.list();
assert.deepEqual(models.data.map((m) => m.id), ["bundled"]);

const whole = await client.chat.completions.create(base);
assert.equal(whole.object, "chat.completion");

let text = "";
let usage = null;
const stream = await client.chat.completions.create({ ...base, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(usage.total_tokens, whole.usage.total_tokens);

const two = await client.completions.create({ model: "bundled", prompt: "The", max_tokens: 4, temperature: 0, n: 2 });
assert.equal(two.choices.length, 2);
assert.equal(two.choices[0].text, two.choices[1].text);

// A client that leaves in the middle of a stream frees its request.
const left = await client.completions.create({ model: "bundled", prompt: "The", max_tokens: 4000, stream: true, ignore_eos: true });
for await (const _ of left) break;
left.controller.abort();
let busy = 1;
for (let i = 0; i < 200 && busy > 0; i++) {
  await new Promise((r) => setTimeout(r, 50));
  const view = await (await fetch(url + "/cluster", { headers: { authorization: "Bearer test-key" } })).json();
  busy = view.requests.length + view.instances.reduce((n, i) => n + i.kv_blocks_total - i.kv_blocks_free, 0);
}
assert.equal(busy, 0, "an abandoned request keeps its blocks");

await assert.rejects(client.chat.completions.create({ ...base, top_p: 2 }), OpenAI.BadRequestError);
await assert.rejects(client.chat.completions.create({ ...base, model: "nobody" }), OpenAI.NotFoundError);
console.log("clients: javascript passed");
