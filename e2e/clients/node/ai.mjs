// Vercel's AI SDK with its provider for OpenAI-compatible servers, unchanged, against the server at BASE_URL.
import assert from 'node:assert/strict';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateObject, generateText, jsonSchema, stepCountIs, streamText, tool } from 'ai';
import { baseURL, check, person, place } from './check.mjs';

const provider = createOpenAICompatible({ name: 'anytime', baseURL, includeUsage: true, supportsStructuredOutputs: true });
const model = provider('default');
const within = (thinking_budget) => ({ model, maxRetries: 0, providerOptions: { anytime: { thinking_budget } } });

await check('chat within a budget', async () => {
  const { text, reasoningText, usage } = await generateText({ ...within(12), prompt: 'How many?', maxOutputTokens: 60 });
  assert.ok(text.length > 0 && reasoningText.length > 0);
  assert.equal(usage.reasoningTokens, 12);
});

await check('effort', async () => {
  const { usage } = await generateText({ model, maxRetries: 0, prompt: 'How many?', maxOutputTokens: 200, providerOptions: { anytime: { reasoningEffort: 'low' } } });
  assert.equal(usage.reasoningTokens, 50); // an eighth of 400
});

await check('streaming', async () => {
  const result = streamText({ ...within(12), prompt: 'How many?', maxOutputTokens: 40 });
  const kinds = new Set();
  for await (const part of result.fullStream) kinds.add(part.type);
  for (const kind of ['reasoning-delta', 'text-delta', 'finish']) assert.ok(kinds.has(kind), kind);
  assert.ok(!kinds.has('error'));
  assert.equal((await result.usage).reasoningTokens, 12);
});

await check('cancelling', async () => {
  const aborted = new AbortController();
  const result = streamText({ ...within(8000), prompt: 'How many?', abortSignal: aborted.signal });
  const kinds = [];
  for await (const part of result.fullStream) {
    kinds.push(part.type);
    if (part.type === 'reasoning-delta') aborted.abort();
  }
  assert.ok(kinds.includes('abort'));
});

await check('structured output', async () => {
  const { object } = await generateObject({ ...within(5), prompt: 'Who?', schema: jsonSchema(person) });
  assert.ok(object.name.length > 0 && Number.isInteger(object.age));
});

await check('tools', async () => {
  let asked = 0;
  const weather = tool({ description: 'How it is.', inputSchema: jsonSchema(place), execute: async ({ place }) => { asked++; return `20 degrees in ${place}`; } });
  const { steps } = await generateText({
    ...within(5), prompt: 'Is it warm?', tools: { weather }, maxOutputTokens: 200, stopWhen: stepCountIs(2),
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? { type: 'tool', toolName: 'weather' } : 'none' }),
  });
  assert.ok(asked > 0);
  assert.equal(steps.length, 2);
  assert.ok(steps[1].text.length > 0);
  const streamed = streamText({ ...within(5), prompt: 'Is it warm?', tools: { weather }, toolChoice: { type: 'tool', toolName: 'weather' } });
  assert.equal((await streamed.toolCalls)[0].toolName, 'weather');
});
