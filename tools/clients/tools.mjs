// What OpenAI's own JavaScript client makes of calls of tools: it runs them itself and goes on with their results.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "test-key", maxRetries: 0, timeout: 60_000 });
const ask = { model: "scripted", messages: [{ role: "user", content: "What is the weather in Oslo, and what time is it?" }] };

for (const stream of [false, true]) {
  const ran = [];
  const tool = (name, properties, result) => ({
    type: "function",
    function: {
      name,
      parameters: { type: "object", properties },
      parse: JSON.parse,
      function: (args) => {
        ran.push([name, args]);
        return result;
      },
    },
  });
  const text = { type: "string" };
  const tools = [tool("get_weather", { city: text, note: text }, "4"), tool("get_time", {}, "noon")];
  const run = client.chat.completions.runTools({ ...ask, tools, stream });
  assert.equal(await run.finalContent(), "It is 4 degrees at noon.");
  assert.deepEqual(ran, [["get_weather", { city: "Oslo", note: "<é>" }], ["get_time", {}]]);
}

// Responses: a stream comes to a whole answer, and goes on by its id.
const tools = [{ type: "function", name: "get_weather", parameters: { type: "object", properties: {} }, strict: false }];
const asked = { model: "scripted", input: ask.messages[0].content, tools };
const whole = await client.responses.create(asked);
const run = client.responses.stream(asked);
const kinds = [];
for await (const event of run) kinds.push(event.type);
const final = await run.finalResponse();
assert.deepEqual([kinds[0], kinds.at(-1)], ["response.created", "response.completed"]);
const brief = (r) => r.output.map((i) => [i.type, i.name, i.arguments ?? i.content[0].text]);
assert.deepEqual(brief(final), brief(whole));
assert.deepEqual(brief(whole)[1], ["function_call", "get_weather", '{"city": "Oslo", "note": "<é>"}']);
assert.equal(whole.output_text, "Let me see.");
const input = ["4", "noon"].map((output, i) => ({ type: "function_call_output", call_id: final.output[i + 1].call_id, output }));
const last = await client.responses.create({ ...asked, input, previous_response_id: final.id });
assert.equal(last.output_text, "It is 4 degrees at noon.");
assert.equal((await client.responses.retrieve(last.id)).output_text, last.output_text);
const items = [];
for await (const item of client.responses.inputItems.list(last.id, { order: "asc", limit: 2 })) items.push(item.type);
assert.deepEqual(items, ["message", "message", "function_call", "function_call", "function_call_output", "function_call_output"]);
await client.responses.delete(last.id);
await assert.rejects(client.responses.retrieve(last.id), OpenAI.NotFoundError);
console.log("clients: javascript passed with tools and responses");
