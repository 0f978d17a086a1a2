// Talks to a running server through the npm package `ai`, which checks every piece of a stream.
//
//   npm install ai @ai-sdk/openai @ai-sdk/openai-compatible @ai-sdk/anthropic zod
//   node scripts/clients/ai_sdk.mjs http://127.0.0.1:8137 [KEY]

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const url = process.argv[2] ?? "http://127.0.0.1:8137";
const apiKey = process.argv[3] ?? "none";
const baseURL = url + "/v1";
const openai = createOpenAI({ baseURL, apiKey });
const compatible = createOpenAICompatible({ name: "millpond", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true });
const anthropic = createAnthropic({ baseURL, apiKey });

const models = {
  "openai chat": openai.chat("m"),
  "openai responses": openai.responses("m"),
  "openai-compatible": compatible("m"),
  anthropic: anthropic("m"),
};
const person = z.object({ name: z.string(), age: z.number().int() });
const weather = tool({
  description: "The weather in a city",
  inputSchema: z.object({ city: z.enum(["Bonn", "Paris"]) }),
});
const prompt = "Hello!";
const settings = { prompt, maxRetries: 0, maxOutputTokens: 24 };

function assert(condition, what) {
  if (!condition) throw new Error(what);
}

const checks = {};
for (const [name, model] of Object.entries(models)) {
  checks[`${name}: text`] = async () => {
    const { text, usage } = await generateText({ model, ...settings });
    assert(text && usage.outputTokens > 0, JSON.stringify(usage));
  };
  checks[`${name}: stream`] = async () => {
    const result = streamText({ model, ...settings, onError: () => {} });
    let text = "";
    for await (const part of result.fullStream) {
      if (part.type === "error") throw part.error;
      if (part.type === "text-delta") text += part.text;
    }
    assert(text && text === (await result.text), "no text");
    assert((await result.usage).outputTokens > 0, "no usage");
  };
  checks[`${name}: forced tool`] = async () => {
    const { toolCalls } = await generateText({ model, ...settings, maxOutputTokens: 80, tools: { weather }, toolChoice: "required" });
    assert(toolCalls[0]?.input.city, JSON.stringify(toolCalls));
  };
  checks[`${name}: streamed tool`] = async () => {
    const result = streamText({ model, ...settings, maxOutputTokens: 80, tools: { weather }, toolChoice: "required", onError: () => {} });
    const calls = [];
    for await (const part of result.fullStream) {
      if (part.type === "error") throw part.error;
      if (part.type === "tool-call") calls.push(part);
    }
    assert(calls[0]?.input.city, JSON.stringify(calls));
  };
}
for (const name of ["openai chat", "openai responses", "openai-compatible"]) {
  checks[`${name}: structured`] = async () => {
    const output = Output.object({ schema: person });
    const result = await generateText({ model: models[name], ...settings, maxOutputTokens: 200, output });
    assert(Number.isInteger(result.output.age), JSON.stringify(result.output));
  };
}
checks["openai: embeddings"] = async () => {
  const { embeddings } = await embedMany({ model: openai.embedding("m"), values: ["a", "b"] });
  assert(embeddings.length === 2 && embeddings[0].length > 8, "no vectors");
};
checks["openai: a refusal is an error with a message"] = async () => {
  try {
    await generateText({ model: models["openai chat"], prompt, maxRetries: 0, maxOutputTokens: 1e9 });
  } catch (error) {
    assert(error.statusCode === 400 && /context/.test(error.message), String(error));
    return;
  }
  throw new Error("accepted");
};

let failed = 0;
for (const [name, run] of Object.entries(checks)) {
  try {
    await run();
    console.log("ok      ", name);
  } catch (error) {
    failed += 1;
    console.log("FAILED  ", name, error);
  }
}
console.log(`${Object.keys(checks).length - failed} of ${Object.keys(checks).length} passed`);
process.exit(failed ? 1 : 0);
