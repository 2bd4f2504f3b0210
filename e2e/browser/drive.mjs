// What the checks of the page share: a browser, pages that notice what must not happen, and a proxy that can be broken.
import net from 'node:net';
import {chromium} from 'playwright-core';

export const {BASE_URL: base, KEYS_URL: guarded, SHOTS: shots} = process.env;
const patience = Number(process.env.PATIENCE ?? 120_000); // ms; above what anything needs

const browser = await chromium.launch({executablePath: process.env.CHROMIUM, args: ['--no-sandbox', '--disable-gpu', '--force-prefers-reduced-motion']});
export const version = browser.version();
const only = process.env.ONLY && new RegExp(process.env.ONLY);

/** check runs a test with a fresh browser profile, and prints a line that says whether it passed. Behind one that did not nothing is tried. */
export async function check(name, test, options = {}) {
  if (only ? !only.test(name) : process.exitCode) return;
  const context = await browser.newContext({viewport: {width: 1100, height: 860}, ...options});
  context.setDefaultTimeout(patience);
  const began = Date.now();
  const wrong = []; // what no page may do
  try {
    await context.addInitScript(() => document.addEventListener('securitypolicyviolation', (e) => console.log(`POLICY ${e.violatedDirective} ${e.blockedURI} ${e.sample}`)));
    const origins = [base, guarded].map((u) => new URL(u).host);
    context.on('request', (r) => {
      const u = new URL(r.url());
      if (/^(http|ws)/.test(u.protocol) && u.hostname !== '127.0.0.1' && !origins.includes(u.host)) wrong.push(`asked for ${r.url()}`);
    });
    context.on('weberror', (e) => wrong.push(`threw ${e.error().stack}`));
    context.on('dialog', (d) => { wrong.push(`opened a dialog: ${d.message()}`); d.dismiss(); });
    context.on('console', (m) => { if (/^POLICY |Content Security Policy/.test(m.text())) wrong.push(m.text()); });
    await test(context);
    if (wrong.length > 0) throw new Error(wrong.join('\n'));
    console.log(`ok ${name}`);
    if (process.env.TIMES) console.log(`  ${Date.now() - began} ms`);
  } catch (error) {
    console.log(`not ok ${name}: ${error.stack ?? error}`);
    for (const [i, page] of context.pages().entries()) {
      console.log(`-- page ${i}: ${page.url()}\n${await page.locator('main').innerText({timeout: 5000}).catch((e) => e.message)}`);
    }
    process.exitCode = 1;
  } finally {
    await context.close();
  }
}

/** close ends the program, whatever a check that failed has left open. */
export const close = () => browser.close().then(() => process.exit());

/** open opens a view in a new tab. */
export async function open(context, view = '', at = base) {
  const page = await context.newPage();
  await page.goto(`${at}/#/${view}`);
  await page.locator('main h1').waitFor();
  return page;
}

/** ask asks a question on the page and returns the run's id. */
export async function ask(page, {question, model, unit, amount, along, budgets}) {
  await page.locator('#question').waitFor();
  if (model) await page.selectOption('#model', model);
  await page.fill('#question', question);
  if (unit) await page.getByRole('radio', {name: unit, exact: true}).check();
  if (amount !== undefined) await page.fill('#amount', String(amount));
  if (along) await page.selectOption('#along', along);
  if (budgets) await page.fill('#budgets', budgets);
  await page.click('button.primary');
  await page.waitForURL(/#\/run\//);
  await page.locator('h1.question').waitFor();
  return page.url().split('#/run/')[1];
}

/** tokens waits until the page has shown so many thinking tokens. */
export const tokens = (page, n) => page.waitForFunction((n) => Number(document.querySelector('.numbers')?.textContent.split(' ')[0].replaceAll(',', '')) >= n, n);

export const press = (page, name) => page.getByRole('button', {name, exact: true}).click();
export const done = (page) => page.getByRole('button', {name: 'Think more'}).waitFor();
export const says = (page, text) => page.getByText(text).first().waitFor();

/** proxy stands between a page and the server. cut ends all connections and takes no new ones; hold passes replies until they say something
 * for the given time, and no further until it is given nothing. */
export async function proxy(to = base) {
  const target = Number(new URL(to).port);
  const sockets = new Set();
  let held;
  const server = net.createServer((client) => {
    const up = net.connect(target, '127.0.0.1');
    for (const [from, into] of [[client, up], [up, client]]) {
      sockets.add(from);
      from.on('error', () => {}).on('close', () => { sockets.delete(from); into.destroy(); });
    }
    let seen = 0; // what one connection said: the others are not held
    client.pipe(up);
    up.on('data', (data) => {
      let end = 0;
      for (let from = 0; held && seen < held.times; seen++) {
        end = data.indexOf(held.text, from);
        if (end < 0) break;
        from = end + held.text.length;
      }
      if (!held || seen < held.times) {
        client.write(data);
        return;
      }
      client.write(data.subarray(0, end));
      up.pause();
      up.unshift(data.subarray(end));
    });
  });
  const listen = (port) => new Promise((resolve) => { server.listen(port, '127.0.0.1', resolve); });
  await listen(0);
  const {port} = server.address();
  return {
    url: `http://127.0.0.1:${port}`,
    cut() {
      const closed = new Promise((resolve) => { server.close(resolve); });
      for (const s of sockets) s.destroy();
      return closed;
    },
    mend: () => listen(port),
    hold(text, times) {
      held = text && {text, times};
      if (!held) for (const s of sockets) s.resume();
    },
    end() {
      for (const s of sockets) s.destroy();
      server.close();
    },
  };
}

/** api calls the server as a program does. */
export async function api(path, {at = base, key, method = 'GET', body} = {}) {
  const reply = await fetch(`${at}/${path}`, {method, body: body && JSON.stringify(body), headers: {...(body && {'Content-Type': 'application/json'}), ...(key && {'X-API-Key': key})}});
  const text = await reply.text();
  return {status: reply.status, body: text.startsWith('{') ? JSON.parse(text) : text};
}
