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
console.log("clients: javascript passed with tools");
