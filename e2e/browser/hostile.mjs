// What people, models and files may say, and what must not come of it: nothing runs, nothing is asked of another address.
import assert from 'node:assert/strict';
import {readFileSync} from 'node:fs';
import {api, base, check, close, done, guarded, open, press, says} from './drive.mjs';

const payloads = JSON.parse(readFileSync(new URL('hostile.json', import.meta.url)));
const [user, other] = ['user-0123456789', 'other-0123456789'];

/** harmless throws where the document has something in it that could act. */
async function harmless(page, what) {
  const found = await page.evaluate(() => {
    const bad = [];
    if (window.struck) bad.push('it ran');
    const own = {svg: '.timeline', input: '#more', button: '.actions *, .runs > button', form: 'form.ask'};
    const inside = (e) => e.closest('.katex') !== null;
    for (const e of document.querySelectorAll('main *')) {
      const tag = e.localName;
      if (['script', 'iframe', 'object', 'embed', 'form', 'img', 'video', 'audio', 'base', 'meta', 'link', 'style', 'template', 'textarea', 'select'].includes(tag)
        || (tag in own && !inside(e) && !e.closest(own[tag]))) bad.push(`a ${tag}: ${e.outerHTML.slice(0, 200)}`);
      for (const a of e.attributes) {
        if (a.name.startsWith('on')) bad.push(`${a.name} on ${tag}`);
        if (a.name === 'style' && !inside(e)) bad.push(`style on ${tag}: ${a.value}`);
        if (/href|src|action/.test(a.name) && !/^(https?:|mailto:|#)/.test(a.value)) bad.push(`${a.name}=${a.value}`);
      }
      if (e.parentElement.closest('.rich') && !inside(e) && (e.id || (e.className && e.firstElementChild?.className !== 'katex'))) bad.push(`a name: ${e.outerHTML.slice(0, 200)}`);
    }
    if (document.querySelectorAll('#main').length !== 1 || document.getElementById('main')?.localName !== 'main') bad.push('it has taken a name of the page');
    return bad;
  });
  assert.deepEqual(found, [], what);
}

await check('questions, thoughts and answers', async (context) => {
  await context.addInitScript(() => { window.hit = () => { window.struck = true; }; });
  const page = await open(context);
  let tried = 0;
  for (const [i, payload] of payloads.entries()) {
    const asked = await api('solve', {method: 'POST', body: {model: 'stage', problem: `case-${i}. ${payload}`, budget: 256, checkpoints: [2]}});
    if (asked.status === 400) { // a NUL is no text
      assert.ok(payload.includes('\0'), `${payload}: ${JSON.stringify(asked.body)}`);
      tried++;
      continue;
    }
    assert.equal(asked.status, 200, `${payload}: ${JSON.stringify(asked.body)}`);
    await page.goto(`${base}/#/run/${asked.body.id}`);
    await page.locator('h1.question', {hasText: `case-${i}.`}).waitFor();
    await done(page);
    await page.locator('.answer .hint').waitFor(); // it was rendered
    await page.click('.thought summary');
    const shown = await page.locator('.thought-text').textContent();
    assert.equal(shown, (await api(`solve/${asked.body.id}?thinking=true`)).body.thinking);
    assert.ok(shown.includes(payload.trim().slice(0, 8)), `the thought says ${shown} and not ${payload}`);
    await page.evaluate(() => { // whatever listens is set off
      for (const e of document.querySelectorAll('main .answer *')) for (const type of ['mouseover', 'focus', 'load', 'error', 'toggle', 'animationstart']) e.dispatchEvent(new Event(type));
    });
    await harmless(page, payload);
    tried += 3;
  }
  await page.goto(`${base}/#/runs`);
  await page.locator('tbody tr').nth(40).waitFor();
  await harmless(page, 'the list');
  await press(page, 'Earlier ones');
  await page.locator('tbody tr').nth(60).waitFor();
  await harmless(page, 'the whole list');
  console.log(`figure hostile: ${tried} places in ${payloads.length} cases`);
});

await check('addresses and files', async (context) => {
  await context.addInitScript(() => { window.hit = () => { window.struck = true; }; });
  const page = await open(context);
  let tried = 0;
  for (const hash of ['#/run/<img src=x onerror=hit()>', '#/run/%3Cscript%3Ehit()%3C/script%3E', '#/<svg onload=hit()>', '#/run/..%2f..%2fmetrics', '#/run/%E0%A4%A', '#/__proto__', '#/constructor/x',
    '#/run/run_none?explain=<script>', '#javascript:hit()']) {
    await page.goto('about:blank');
    await page.goto(`${base}/${hash}`);
    await page.locator('main h1').waitFor();
    await harmless(page, hash);
    tried++;
  }
  await page.goto(`${base}/#/training`);
  for (const payload of payloads) {
    const lines = [{round: 1, reward: payload, accuracy: [{budget: payload, mean: payload}], thinking: payload}, {round: 2, [payload]: payload}];
    await page.locator('#metrics').waitFor();
    await page.setInputFiles('#metrics', {name: `${tried}.jsonl`, mimeType: '', buffer: Buffer.from(lines.map((l) => `${JSON.stringify(l)}\n`).join(''))});
    tried++;
  }
  await page.setInputFiles('#metrics', {name: 'x', mimeType: '', buffer: Buffer.from(payloads.join('\n'))});
  await page.getByRole('alert').waitFor();
  assert.equal(await page.evaluate(() => window.struck), undefined);
  console.log(`figure hostile: ${tried} addresses and files`);
});

await check('runs of other keys', async (context) => {
  const {body} = await api('solve', {at: guarded, key: user, method: 'POST', body: {problem: 'My secret?', budget: 8}});
  await context.addInitScript((key) => location.protocol === 'http:' && sessionStorage.setItem('anytime-key', key), other);
  const page = await open(context, `run/${body.id}`, guarded);
  await says(page, 'This run is not here');
  await page.goto(`${guarded}/#/runs`);
  await says(page, 'Nothing was asked yet');
  assert.ok(!(await page.content()).includes('secret'));
  let tried = 2;
  for (const [method, path] of [['GET', ''], ['GET', '?thinking=true&explain=true'], ['GET', '/events'], ['POST', '/interrupt'], ['POST', '/extend?budget=8'], ['DELETE', '']]) {
    for (const key of [other, undefined]) {
      const reply = await api(`solve/${body.id}${path}`, {at: guarded, key, method});
      assert.equal(reply.status, key ? 404 : 401, `${method} ${path}`);
      assert.ok(!JSON.stringify(reply.body).includes('secret'));
      tried++;
    }
  }
  assert.equal((await api(`solve/${body.id}`, {at: guarded, key: user})).body.problem, 'My secret?');
  console.log(`figure hostile: ${tried} ways to another key's run`);
});

await close();
