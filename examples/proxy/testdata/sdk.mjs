// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Asks a proxy through the openai package of npm: sdk.mjs BASE_URL TOKEN.

import assert from "node:assert";
import OpenAI from "openai";
import { VERSION } from "openai/version";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const tools = [
	{ type: "function", function: { name: "clock", parameters: { type: "object", properties: {} } } },
];

// chat
const answer = await client.chat.completions.create({ model: "demo", messages });
assert.match(answer.choices[0].message.content, /Paris/);

// stream: pieces arrive one by one, since the demo's model types
const pieces = [];
const times = [];
for await (const chunk of await client.chat.completions.create({ model: "demo", messages, stream: true })) {
	if (chunk.choices[0]?.delta.content) {
		pieces.push(chunk.choices[0].delta.content);
		times.push(performance.now());
	}
}
assert.strictEqual(pieces.join(""), answer.choices[0].message.content);
assert.ok(times.at(-1) - times[0] > 20 * pieces.length, "pieces came together");

// a stream that is left early
for await (const _ of await client.chat.completions.create({ model: "demo", messages, stream: true })) {
	break;
}

// tools, whole and put together from a stream
const call = await client.chat.completions.create({ model: "demo", messages, tools });
assert.strictEqual(call.choices[0].message.tool_calls[0].function.name, "clock");
const streamed = await client.chat.completions.stream({ model: "demo", messages, tools }).finalChatCompletion();
assert.strictEqual(streamed.choices[0].message.tool_calls[0].function.name, "clock");

// embeddings and models
const { data } = await client.embeddings.create({ model: "demo", input: ["a", "b"], encoding_format: "float" });
assert.strictEqual(data.length, 2);
const models = await client.models.list();
assert.deepStrictEqual(models.data.map((m) => m.id), ["demo"]);

// errors
const refused = async (kind, status, promise) =>
	assert.rejects(promise, (e) => e instanceof kind && e.status === status && e.message.length > 0);
await refused(OpenAI.NotFoundError, 404, client.models.retrieve("nothing"));
await refused(OpenAI.BadRequestError, 400, client.chat.completions.create({ model: "demo", messages: "no list" }));
await refused(OpenAI.AuthenticationError, 401, new OpenAI({ baseURL, apiKey: "wrong" }).models.list());

console.log(`Node's openai ${VERSION}: chat, stream, tools, embeddings, models, errors`);
