// What docs/page.md says in figures. Nothing here can fail but by being wrong; how fast it is depends on the machine.
import assert from 'node:assert/strict';
import {api, ask, base, check, close, done, open, tokens, version} from './drive.mjs';

const median = (list) => list.toSorted((a, b) => a - b)[list.length >> 1];
const puzzle = 'Use 5, 6 and 13, each exactly once, with + - * / to make 43.';

await check('weight', async (context) => {
  console.log(`figure browser: Chromium ${version}`);
  const page = await context.newPage();
  const taken = () => page.evaluate(() => {
    const all = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource').filter((e) => /assets/.test(e.name))];
    const sum = (key) => Math.round(all.reduce((n, e) => n + e[key], 0) / 1024);
    return `${all.length} files, ${sum('decodedBodySize')} KiB, ${sum('encodedBodySize')} KiB as sent`;
  });
  await page.goto(`${base}/`);
  await page.locator('.chip').first().waitFor();
  console.log(`figure weight, first view: ${await taken()}`);
  await ask(page, {model: 'stage', question: 'With a formula.', amount: 16, along: 'end'});
  await page.locator('.result .katex').waitFor();
  await page.evaluate(() => document.fonts.ready);
  console.log(`figure weight, with formulas: ${await taken()}`);
  await page.evaluate(() => { location.hash = '#/models'; });
  await page.locator('.chart canvas').first().waitFor();
  console.log(`figure weight, with charts: ${await taken()}`);
});

await check('the first token', async (context) => {
  const page = await open(context);
  const seen = {page: [], api: []};
  for (let i = 0; i < 15; i++) {
    const began = performance.now();
    const reply = await fetch(`${base}/solve`, {method: 'POST', headers: {'Content-Type': 'application/json', Accept: 'text/event-stream'}, body: JSON.stringify({problem: puzzle, budget: 64, on_disconnect: 'continue'})});
    let text = '';
    for await (const part of reply.body.pipeThrough(new TextDecoderStream())) {
      text += part;
      if (text.includes('event: thinking')) {
        seen.api.push(performance.now() - began);
        break;
      }
    }
    await page.goto(`${base}/#/`);
    await page.locator('#question').waitFor();
    await page.fill('#question', puzzle);
    await page.fill('#amount', '64');
    await page.selectOption('#along', 'end');
    seen.page.push(await page.evaluate(() => new Promise((resolve) => {
      const began = performance.now();
      const look = () => (document.querySelector('.thought-text')?.textContent ? resolve(performance.now() - began) : requestAnimationFrame(look)); // as painted
      document.querySelector('button.primary').click();
      look();
    })));
    await done(page);
  }
  console.log(`figure first token, median of ${seen.page.length}: page ${median(seen.page).toFixed(0)} ms, API alone ${median(seen.api).toFixed(0)} ms`);
});

await check('a long thought', async (context) => {
  const page = await open(context);
  const watch = () => page.evaluate(() => {
    window.long = [];
    window.frames = [];
    new PerformanceObserver((list) => window.long.push(...list.getEntries().map((e) => e.duration))).observe({type: 'longtask'});
    let before = performance.now();
    const each = (now) => { window.frames.push(now - before); before = now; requestAnimationFrame(each); };
    requestAnimationFrame(each);
  });
  const tell = async (what) => {
    const {long, frames} = await page.evaluate(() => ({long: window.long, frames: window.frames.slice(1)}));
    const sorted = frames.toSorted((a, b) => a - b);
    console.log(`figure 4,000 tokens, ${what}: ${frames.length} frames, median ${median(frames).toFixed(1)} ms, 99 of 100 within ${sorted[Math.floor(sorted.length * 0.99)].toFixed(0)} ms, longest ${sorted.at(-1).toFixed(0)} ms; ` +
      `${long.length} tasks over 50 ms, longest ${Math.max(0, ...long).toFixed(0)} ms`);
  };
  await watch();
  const id = await ask(page, {model: 'stage', question: 'At length.', unit: 'Tokens', amount: 4000});
  await page.click('.thought summary');
  await tokens(page, 4000);
  await done(page);
  await tell('as they come, unfolded');
  assert.equal((await api(`solve/${id}`)).body.usage.thinking_tokens, 4000);
  await page.goto('about:blank');
  await page.goto(`${base}/#/runs`);
  await page.locator('tbody tr').first().waitFor();
  await watch();
  await page.evaluate((id) => { location.hash = `#/run/${id}`; }, id);
  await page.locator('.thought summary').click();
  await tokens(page, 4000);
  await done(page);
  await tell('all at once');
});

await close();
