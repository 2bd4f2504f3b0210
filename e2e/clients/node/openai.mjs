// OpenAI's client for Node, unchanged, against the server at BASE_URL.
import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { baseURL, check, grammar, person, place } from './check.mjs';

const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 });
const messages = [{ role: 'developer', content: 'Be kind.' }, { role: 'user', content: [{ type: 'text', text: 'How many?' }] }];
const tools = [{ type: 'function', function: { name: 'weather', description: 'How it is.', parameters: place, strict: true } }];

await check('models', async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.equal(ids.length, 1);
});

await check('chat within a budget', async () => {
  const reply = await client.chat.completions.create({ model: 'default', messages, thinking_budget: 12, max_completion_tokens: 60, seed: 1, user: 'me', metadata: { a: 'b' } });
  assert.ok(reply.choices[0].message.content.length > 0);
  assert.equal(reply.usage.completion_tokens_details.reasoning_tokens, 12);
  assert.ok(reply.choices[0].message.reasoning_content.length > 0);
});

await check('effort', async () => {
  const reply = await client.chat.completions.create({ model: 'default', messages, reasoning_effort: 'low', max_completion_tokens: 200 });
  assert.equal(reply.usage.completion_tokens_details.reasoning_tokens, 50); // an eighth of 400
});

await check('streaming', async () => {
  const stream = client.chat.completions.stream({ model: 'default', messages, thinking_budget: 12, max_completion_tokens: 40, stream_options: { include_usage: true } });
  let thinking = '';
  let content = '';
  for await (const chunk of stream) {
    thinking += chunk.choices[0]?.delta.reasoning_content ?? '';
    content += chunk.choices[0]?.delta.content ?? '';
  }
  const whole = await stream.finalChatCompletion();
  assert.ok(thinking.length > 0);
  assert.equal(whole.choices[0].message.content, content);
  assert.equal(whole.usage.completion_tokens_details.reasoning_tokens, 12);
});

await check('cancelling', async () => {
  const stream = await client.chat.completions.create({ model: 'default', messages, stream: true });
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.reasoning_content) break; // leaving the loop aborts the request
  }
  const aborted = new AbortController();
  setTimeout(() => aborted.abort(), 50);
  await assert.rejects(client.chat.completions.create({ model: 'default', messages, thinking_budget: 8000 }, { signal: aborted.signal }), OpenAI.APIUserAbortError);
});

await check('errors', async () => {
  await assert.rejects(client.chat.completions.create({ model: 'nobody', messages }), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ model: 'default', messages, thinking_budget: 3, reasoning_effort: 'low' }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.code, 'conflict');
    return true;
  });
});

await check('structured output', async () => {
  const reply = await client.chat.completions.parse({
    model: 'default', messages, thinking_budget: 5, response_format: { type: 'json_schema', json_schema: { name: 'person', schema: person, strict: true } },
  });
  const { name, age } = JSON.parse(reply.choices[0].message.content);
  assert.ok(name.length > 0 && Number.isInteger(age));
});

await check('tools', async () => {
  const reply = await client.chat.completions.create({ model: 'default', messages, tools, tool_choice: 'required', parallel_tool_calls: false, thinking_budget: 5 });
  const [call] = reply.choices[0].message.tool_calls;
  assert.equal(reply.choices[0].finish_reason, 'tool_calls');
  assert.equal(typeof JSON.parse(call.function.arguments).place, 'string');
  const next = await client.chat.completions.create({
    model: 'default', messages: [...messages, reply.choices[0].message, { role: 'tool', tool_call_id: call.id, content: '20 degrees' }], tools, tool_choice: 'none', thinking_budget: 5, max_tokens: 40,
  });
  assert.ok(next.choices[0].message.content.length > 0);
});

await check('tools, run by the client', async () => {
  let asked = 0;
  const runner = client.chat.completions.runTools({
    model: 'default', stream: true, messages, thinking_budget: 5, max_tokens: 200, tool_choice: { type: 'function', function: { name: 'weather' } },
    tools: [{ type: 'function', function: { name: 'weather', parameters: place, parse: JSON.parse, function: ({ place }) => { asked++; return `20 degrees in ${place}`; } } }],
  }, { maxChatCompletions: 2 });
  await runner.done();
  assert.ok(asked > 0);
});

await check('responses', async () => {
  const first = await client.responses.create({ model: 'default', input: 'How many?', instructions: 'Count.', reasoning: { effort: 'low', summary: 'auto' }, max_output_tokens: 100 });
  assert.ok(first.output_text.length > 0);
  assert.equal(first.output[0].type, 'reasoning');
  assert.ok(first.output[0].summary[0].text.length > 0);
  const stream = client.responses.stream({ model: 'default', input: [{ role: 'user', content: 'And now?' }], previous_response_id: first.id, thinking_budget: 5, grammar });
  let text = '';
  stream.on('response.output_text.delta', (event) => { text += event.delta; });
  const last = await stream.finalResponse();
  assert.equal(last.output.at(-1).content[0].text, text);
  assert.equal((await client.responses.retrieve(first.id)).output_text, first.output_text);
  const items = [];
  for await (const item of client.responses.inputItems.list(last.id)) items.push(item);
  assert.equal(items.length, 3);
  await client.responses.delete(first.id);
  await assert.rejects(client.responses.retrieve(first.id), OpenAI.NotFoundError);
});

await check('responses: structured output and tools', async () => {
  const reply = await client.responses.parse({ model: 'default', input: 'Who?', thinking_budget: 5, text: { format: { type: 'json_schema', name: 'person', schema: person, strict: true } } });
  assert.ok(Number.isInteger(JSON.parse(reply.output_text).age));
  const called = await client.responses.create({
    model: 'default', input: 'Is it warm?', thinking_budget: 5, tools: [{ type: 'function', name: 'weather', parameters: place, strict: true }], tool_choice: 'required', parallel_tool_calls: false,
  });
  const call = called.output.find((item) => item.type === 'function_call');
  const next = await client.responses.create({
    model: 'default', previous_response_id: called.id, thinking_budget: 5, max_output_tokens: 40, input: [{ type: 'function_call_output', call_id: call.call_id, output: '20 degrees' }],
  });
  assert.ok(next.output_text.length > 0);
});
