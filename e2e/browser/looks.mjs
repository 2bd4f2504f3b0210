// How the page looks: axe-core's rules, phone width, and the pictures of the documentation.
import assert from 'node:assert/strict';
import {readFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {api, ask, base, check, close, done, open, press, proxy, says, shots, tokens} from './drive.mjs';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const puzzle = 'Use 5, 6 and 13, each exactly once, with + - * / to make 43.';
const phone = {viewport: {width: 390, height: 844}, deviceScaleFactor: 2, hasTouch: true, isMobile: true};
let finished; // the run that most look at
const picture = (page, name, options) => page.screenshot({path: `${shots}/page-${name}.png`, animations: 'disabled', ...options});

/** seeded has a page's question thought about in the same way each time. */
const seeded = (page) => page.route('**/solve', (route) => route.continue({postData: JSON.stringify({...route.request().postDataJSON(), seed: 2})}));

/** views are the page's, each brought to where there is most to see. */
async function* views(context) {
  const page = await open(context);
  yield ['ask', page];
  await page.selectOption('#along', 'compare');
  yield ['ask, budgets', page];
  await page.goto(`${base}/#/run/${finished}`);
  await done(page);
  for (const s of await page.locator('summary').all()) await s.click();
  await says(page, 'Prefill');
  yield ['run', page];
  await page.goto(`${base}/#/runs`);
  await page.locator('tbody tr').first().waitFor();
  yield ['runs', page];
  await page.goto(`${base}/#/models`);
  await says(page, 'was not measured');
  await page.locator('.chart canvas').waitFor();
  await page.locator('summary').click();
  yield ['models', page];
  await page.goto(`${base}/#/load`);
  await page.locator('.chart canvas').waitFor();
  yield ['load', page];
  await page.goto(`${base}/#/training`);
  await page.setInputFiles('#metrics', {name: 'metrics.jsonl', mimeType: '', buffer: Buffer.from('{"step":1,"loss":2,"tokens_per_s":9}\n{"step":2,"loss":1,"tokens_per_s":9}\n')});
  await page.locator('.chart canvas').nth(1).waitFor();
  yield ['training', page];
  await page.goto(`${base}/#/run/run_none`);
  await says(page, 'This run is not here');
  yield ['an error', page];
  await page.goto(`${base}/`);
  const id = await ask(page, {model: 'stage', question: 'Take your time.', unit: 'As long as it likes'});
  await tokens(page, 300);
  yield ['a run under way', page];
  await api(`solve/${id}`, {method: 'DELETE'});
  await says(page, /This run is not here|It was cancelled/);
  await page.evaluate(() => document.getElementById('key').showModal());
  yield ['the dialog', page];
}

await check('the puzzle', async (context) => { // that the others look at
  const page = await open(context);
  await seeded(page);
  finished = await ask(page, {question: puzzle, amount: 512});
  await done(page);
});

for (const colorScheme of ['light', 'dark']) {
  await check(`axe, ${colorScheme}`, async (context) => {
    let seen = 0;
    for await (const [name, page] of views(context)) {
      await page.evaluate(axe);
      const {violations, passes} = await page.evaluate(() => axe.run(document, {resultTypes: ['violations', 'passes']}));
      assert.deepEqual(violations.map((v) => `${name}: ${v.id}: ${v.nodes.map((n) => n.target).join(' ')}: ${v.help}`), []);
      assert.ok(passes.length > 10);
      seen++;
    }
    console.log(`figure axe ${colorScheme}: 0 violations in ${seen} views`);
  }, {colorScheme});
}

for (const width of [320, 390]) {
  await check(`phone, ${width} pixels`, async (context) => {
    for await (const [name, page] of views(context)) {
      const {scrollWidth, clientWidth} = await page.evaluate(() => ({scrollWidth: document.documentElement.scrollWidth, clientWidth: document.documentElement.clientWidth}));
      assert.ok(scrollWidth <= clientWidth, `${name}: ${scrollWidth} wide of ${clientWidth}`);
    }
  }, {...phone, viewport: {width, height: 844}});
}

await check('pictures', async (context) => {
  const between = await proxy();
  between.hold('event: checkpoint', 5); // in mid-thought
  const page = await open(context, '', between.url);
  await seeded(page);
  await ask(page, {question: puzzle, amount: 512});
  await page.locator('.column').or(page.getByRole('button', {name: 'Think more'})).first().waitFor();
  await page.click('.thought summary');
  await page.evaluate(() => scrollTo(0, 0));
  await picture(page, 'thinking');
  between.hold();
  await done(page);
  between.end();
  await page.goto(`${base}/#/run/${finished}`);
  await done(page);
  await picture(page, 'answer', {fullPage: true});
  await page.goto(`${base}/`);
  await page.locator('.chip').first().click();
  await picture(page, 'ask');
  await page.goto(`${base}/#/models`);
  await page.locator('.chart canvas').waitFor();
  await picture(page, 'models');
});

await check('pictures in the dark', async (context) => {
  const page = await open(context, `run/${finished}`);
  await done(page);
  await picture(page, 'answer-dark', {fullPage: true});
}, {colorScheme: 'dark'});

await check('pictures of a phone', async (context) => {
  const page = await open(context, `run/${finished}`);
  await done(page);
  await page.getByText('The answer is').waitFor({state: 'attached'});
  await picture(page, 'phone');
}, phone);

await close();
