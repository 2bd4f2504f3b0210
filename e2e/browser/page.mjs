// The page as people use it. Each check is named in docs/page.md.
import assert from 'node:assert/strict';
import {api, ask, base, check, close, done, guarded, open, press, proxy, says, shots, tokens} from './drive.mjs';

const puzzle = 'Use 5, 6 and 13, each exactly once, with + - * / to make 43.';
const slow = {model: 'stage', question: 'Take your time.', unit: 'As long as it likes'}; // thinks until it is stopped
const short = {model: 'stage', question: 'Only a little.', amount: 64, along: 'end'};
const user = 'user-0123456789';
const column = (page) => page.locator('.column');

await check('examples suit the model', async (context) => {
  const page = await open(context);
  const listed = (await api('v1/models')).body.data.find((m) => m.default).examples;
  assert.deepEqual(await page.locator('.chip').allTextContents(), listed);
  await page.selectOption('#model', 'stage');
  await says(page, 'How many primes are there below 100?');
  await page.locator('.chip').first().click();
  assert.equal(await page.inputValue('#question'), await page.locator('.chip').first().textContent());
});

await check('ask and watch', async (context) => {
  const page = await open(context);
  const id = await ask(page, {question: puzzle, amount: 512});
  await page.click('.thought summary');
  await done(page);
  const {body} = await api(`solve/${id}?thinking=true`);
  assert.equal(await page.locator('.result').textContent(), body.answer);
  assert.equal(await page.locator('.thought-text').textContent(), body.thinking);
  assert.match(await page.locator('.numbers').textContent(), new RegExp(`^${body.usage.thinking_tokens} of 512 tokens · `));
  const shown = await column(page).locator('strong').allTextContents();
  assert.deepEqual(shown, [...body.checkpoints.map((c) => c.answer), body.answer]);
  assert.equal(await page.locator('svg.timeline circle').count(), shown.length);
  await page.click('.explain summary');
  await says(page, 'Prefill');
});

await check('answer now', async (context) => {
  const page = await open(context);
  await ask(page, slow);
  await tokens(page, 40);
  await press(page, 'Answer now');
  await done(page);
  await says(page, /You asked for the answer after \d+ tokens/);
});

await check('answer, but think on; stop', async (context) => {
  const page = await open(context);
  const id = await ask(page, {...slow, along: 'end'});
  await tokens(page, 20);
  await press(page, 'Answer, but think on');
  await column(page).first().waitFor();
  const then = await page.locator('.numbers').textContent();
  await page.waitForFunction((then) => document.querySelector('.numbers').textContent !== then, then);
  assert.equal(await page.getByRole('status').textContent(), 'Thinking …');
  await press(page, 'Stop');
  await page.locator('#question').waitFor();
  assert.equal(await page.inputValue('#question'), slow.question);
  assert.equal((await api(`solve/${id}`)).status, 404);
});

await check('think more', async (context) => {
  const page = await open(context);
  const id = await ask(page, short);
  await done(page);
  assert.equal((await api(`solve/${id}`)).body.usage.thinking_tokens, 64);
  await page.fill('#more', '+32');
  await press(page, 'Think more');
  await tokens(page, 96);
  await done(page);
  assert.deepEqual(await column(page).locator('.hint:first-child').allTextContents(), ['64 tokens', '96 tokens']);
  await page.reload();
  await done(page);
  await tokens(page, 96);
  assert.equal(await column(page).count(), 2);
  await page.fill('#more', 'a while');
  await press(page, 'Think more');
  await page.getByRole('alert').waitFor();
});

await check('one thought at several budgets', async (context) => {
  const page = await open(context);
  await ask(page, {model: 'stage', question: 'Side by side.', amount: 48, along: 'compare', budgets: '16, 96, 32'});
  await done(page);
  assert.deepEqual(await column(page).locator('.hint:first-child').allTextContents(), ['16 tokens', '32 tokens', '96 tokens']);
});

await check('a budget in seconds', async (context) => {
  const page = await open(context);
  const id = await ask(page, {...slow, unit: 'Seconds', amount: 1.5});
  await done(page);
  assert.equal((await api(`solve/${id}`)).body.stop.cause, 'deadline');
  assert.match(await page.locator('.numbers').textContent(), / of 1\.50 s$/);
});

await check('formulas and Markdown', async (context) => {
  const page = await open(context);
  await ask(page, {model: 'stage', question: 'With a formula.', amount: 16, along: 'end'});
  await done(page);
  await page.locator('.result .katex').waitFor();
  await page.locator('.rich .katex').first().waitFor();
  assert.equal(await page.locator('.rich strong').textContent(), 'first');
  await ask(await open(context), {model: 'stage', question: 'With stars.', amount: 16, along: 'end'}).then(() => done(context.pages()[1]));
  assert.equal(await context.pages()[1].locator('.result').textContent(), '2*3*4'); // not emphasis
});

await check('reload in mid-thought', async (context) => {
  const page = await open(context);
  await ask(page, slow);
  await tokens(page, 40);
  const before = await page.locator('.thought-text').textContent();
  await page.reload();
  await tokens(page, 80);
  assert.ok((await page.locator('.thought-text').textContent()).startsWith(before));
  await press(page, 'Answer now');
  await done(page);
});

await check('lost connection', async (context) => {
  const between = await proxy();
  const page = await open(context, '', between.url);
  const id = await ask(page, slow);
  await tokens(page, 30);
  await between.cut();
  await says(page, 'The connection is lost');
  const lost = await page.locator('.thought-text').textContent();
  await between.mend();
  await page.waitForFunction((n) => document.querySelector('.thought-text').textContent.length > n, lost.length);
  await press(page, 'Answer now');
  await done(page);
  const {body} = await api(`solve/${id}?thinking=true`);
  assert.equal(await page.locator('.thought-text').textContent(), body.thinking); // nothing lost, nothing twice
  between.end();
});

await check('offline', async (context) => {
  const page = await open(context);
  await ask(page, short);
  await done(page);
  await context.setOffline(true);
  await press(page, 'Think more');
  await says(page, 'The server cannot be reached');
  await context.setOffline(false);
  await press(page, 'Think more');
  await tokens(page, 576);
  await done(page);
});

await check('events that are void', async (context) => {
  const page = await open(context);
  const id = await ask(page, short);
  await done(page);
  const {thinking} = (await api(`solve/${id}?thinking=true`)).body;
  let asked = 0;
  await page.route('**/events?*', (route) => (asked++ > 0 ? route.continue() : route.fulfill({contentType: 'text/event-stream', body: [
    `id: 1\nevent: run\ndata: {"id":"${id}","limit":64,"created":"2026-01-05T10:00:00Z"}`, 'id: 2\nevent: thinking\ndata: {"text":"never kept","tokens":2}',
    'id: 1\nevent: reset\ndata: {"offset":1}', ''].join('\n\n')})));
  await page.reload();
  await done(page);
  await page.waitForFunction((text) => document.querySelector('.thought-text').textContent === text, thinking);
  assert.equal(asked, 2);
});

await check('two tabs on one run', async (context) => {
  const [one, two] = [await open(context), await context.newPage()];
  const id = await ask(one, slow);
  await two.goto(one.url());
  await tokens(one, 30);
  await tokens(two, 30);
  await press(two, 'Answer now');
  await Promise.all([done(one), done(two)]);
  const {thinking: text} = (await api(`solve/${id}?thinking=true`)).body;
  for (const page of [two, one]) {
    await page.bringToFront(); // what is not seen is not drawn
    await page.waitForFunction((text) => document.querySelector('.thought-text').textContent === text, text);
  }
  await one.fill('#more', '+16');
  await press(one, 'Think more');
  await one.waitForFunction((n) => document.querySelector('.thought-text').textContent.length > n, text.length);
  await done(one);
  await two.bringToFront();
  await two.evaluate(() => dispatchEvent(new Event('focus'))); // as when one comes back to it
  await two.waitForFunction((n) => document.querySelector('.thought-text').textContent.length > n, text.length);
  await done(two);
  assert.equal(await two.locator('.thought-text').textContent(), (await api(`solve/${id}?thinking=true`)).body.thinking);
  await press(two, 'Remove');
  await press(two, 'Remove for good');
  await two.waitForURL(/#\/runs/);
  await one.reload();
  await says(one, 'This run is not here');
});

await check('past runs', async (context) => {
  const page = await open(context, 'runs');
  const row = page.locator('tbody tr', {hasText: puzzle}).first();
  const {runs} = (await api('solve')).body;
  assert.equal(await row.locator('td').nth(1).textContent(), runs.find((r) => r.problem === puzzle).answer);
  await row.getByRole('link').click();
  await done(page);
  assert.equal(await page.locator('h1').textContent(), puzzle);
  await page.goBack();
  await page.locator('tbody tr').first().waitFor();
});

await check('models and their curves', async (context) => {
  const page = await open(context, 'models');
  const chart = page.getByRole('img', {name: /^Accuracy over the budget\. reasoner: \d+ % after 0 tokens/});
  await chart.locator('canvas').waitFor();
  await page.getByText('As a table').first().click();
  const {curve} = (await api('v1/models')).body.data[0];
  assert.equal(await page.locator('details tbody tr').count(), curve.length);
  const card = page.getByRole('region', {name: 'reasoner', exact: true});
  await card.getByText('brpo', {exact: true}).waitFor();
  await page.getByRole('region', {name: 'stage'}).getByText('was not measured').waitFor();
});

await check('load', async (context) => {
  await api('solve', {method: 'POST', body: {problem: puzzle, budget: '5s'}}); // a deadline to keep
  const page = await open(context, 'load');
  const figure = (text) => page.locator('.figure', {hasText: text}).locator('strong');
  const id = await ask(await open(context), slow);
  await page.bringToFront();
  await page.waitForFunction(() => document.querySelector('.figure strong').textContent === '1');
  let seen = false;
  const busy = (async () => { while (!seen) await api('solve', {method: 'POST', body: {problem: puzzle}}); })();
  await page.waitForFunction(() => Number(document.querySelectorAll('.figure strong')[1].textContent.replaceAll(',', '')) > 0).finally(() => { seen = true; });
  await busy;
  assert.match(await figure('deadlines kept').textContent(), /^\d+ %$/);
  await api(`solve/${id}`, {method: 'DELETE'});
  await page.waitForFunction(() => document.querySelector('.figure strong').textContent === '0');
});

await check('a training run', async (context) => {
  const page = await open(context, 'training');
  const give = (...lines) => page.setInputFiles('#metrics', {name: 'metrics.jsonl', mimeType: 'application/x-ndjson', buffer: Buffer.from(lines.map((l) => (typeof l === 'string' ? l : `${JSON.stringify(l)}\n`)).join(''))});
  await give(...[1, 2, 3].map((round) => ({round, reward: round / 4, thinking: 90, advantage_variance: 0.03, accuracy: [{budget: 32, mean: 0.2}, {budget: 64, mean: round / 5}]})), '{"round": 4, "rew');
  await page.getByRole('img', {name: 'Accuracy at each budget, by round'}).locator('canvas').waitFor();
  await page.getByRole('img', {name: 'Thinking tokens, by round'}).locator('canvas').waitFor();
  await give({step: 1, loss: 2, tokens_per_s: 300}, {step: 2, loss: 1.5, tokens_per_s: 310});
  await page.getByRole('img', {name: 'Loss, by step'}).locator('canvas').waitFor();
  await give('no metrics\n');
  await says(page, 'Line 1 is not JSON');
});

await check('the server is gone', async (context) => {
  const between = await proxy();
  const page = await open(context, '', between.url);
  await page.fill('#question', 'Is anybody there?');
  await between.cut();
  await press(page, 'Think');
  await says(page, 'The server cannot be reached');
  assert.equal(await page.inputValue('#question'), 'Is anybody there?');
  await page.getByRole('link', {name: 'Runs'}).click();
  await says(page, 'The server cannot be reached');
  await between.mend();
  await press(page, 'Try again');
  await page.locator('tbody tr').first().waitFor();
  between.end();
});

await check('a key is needed', async (context) => {
  const page = await context.newPage();
  await page.goto(`${guarded}/`);
  const dialog = page.getByRole('dialog');
  await dialog.waitFor();
  await page.fill('#key-value', 'wrong-0123456789');
  await press(page, 'Use it');
  await says(page, 'It does not take the key');
  await page.fill('#key-value', user);
  await page.keyboard.press('Enter');
  await ask(page, {question: 'Who am I?', amount: 8});
  await done(page);
  await page.getByRole('link', {name: 'Load'}).click();
  await says(page, 'Not allowed');
});

await check('no key', async (context) => {
  const page = await context.newPage();
  await page.goto(`${guarded}/#/runs`);
  await press(page, 'Not now');
  await says(page, 'A key is needed');
  await press(page, 'Try again');
  await page.getByRole('dialog').waitFor();
});

await check('too many requests', async (context) => {
  await context.addInitScript(() => location.protocol === 'http:' && sessionStorage.setItem('anytime-key', 'few-0123456789'));
  const page = await open(context, '', guarded);
  await page.fill('#question', 'Again and again?');
  while ((await api('v1/models', {at: guarded, key: 'few-0123456789'})).status !== 429);
  await press(page, 'Think');
  await says(page, 'The server is busy');
  await says(page, /[Tt]ry again in/);
});

await check('an unknown run', async (context) => {
  const page = await open(context, 'run/run_none');
  await says(page, 'This run is not here');
  await page.goto(`${base}/#/nowhere`);
  await says(page, 'This is not here');
});

await check('keyboard only', async (context) => {
  const page = await open(context);
  const focus = async (key, what, limit = 40) => {
    for (let i = 0; i < limit; i++) {
      if (await page.evaluate((what) => document.activeElement.matches(what) || document.activeElement.textContent.trim() === what, what).catch(() => false)) return;
      await page.keyboard.press(key);
    }
    assert.fail(`${what} cannot be reached with ${key}`);
  };
  await focus('Tab', '#question'); // where it is at first
  await focus('Shift+Tab', '.skip');
  await page.keyboard.press('Enter');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'main');
  await focus('Tab', '.chip');
  await page.keyboard.press('Enter');
  await focus('Tab', 'input[type=radio]');
  await page.keyboard.press('ArrowRight');
  await page.keyboard.press('ArrowRight');
  await focus('Tab', '#model');
  await page.selectOption('#model', 'stage'); // its list belongs to the system, not to the page
  await focus('Shift+Tab', '#question');
  await page.keyboard.press('Control+a');
  await page.keyboard.type('Take your time.');
  await page.keyboard.press('Control+Enter');
  await page.waitForURL(/#\/run\//);
  await focus('Tab', '.thought summary');
  await page.keyboard.press('Enter');
  await focus('Tab', '.thought-text');
  await tokens(page, 20);
  await page.evaluate(() => document.querySelector('main').focus());
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Answer now');
  await page.keyboard.press('Enter');
  await done(page);
  await page.waitForFunction(() => document.activeElement.textContent === 'Think more'); // it is not lost with the button that had it
  await page.keyboard.press('Tab');
  await page.keyboard.press('Control+a');
  await page.keyboard.type('+16');
  await page.keyboard.press('Enter');
  await page.getByRole('button', {name: 'Answer now'}).or(page.getByText('Cut at its budget')).first().waitFor();
});

await check('what a screen reader hears', async (context) => {
  const page = await open(context);
  await ask(page, short);
  await page.getByRole('status').getByText(/^Done\. The answer is /).waitFor();
  const tree = await page.locator('body').ariaSnapshot();
  for (const part of ['banner', 'navigation "Views"', 'main', 'heading "Only a little."', 'progressbar "Budget used"', 'region "Answer"', 'textbox "How much more']) assert.ok(tree.includes(part), `${part} is not in\n${tree}`);
});

await check('dark and light', async (context) => {
  const page = await open(context);
  const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await paper();
  await page.getByRole('button', {name: 'Change between light and dark'}).click();
  const dark = await paper();
  assert.notEqual(light, dark);
  await page.reload();
  assert.equal(await paper(), dark);
});

await close();
