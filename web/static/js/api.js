// The server's API. Every failure is an ApiError whose words say what to do.

export class ApiError extends Error {
  constructor(title, message, status, code) {
    super(message);
    Object.assign(this, {title, status, code});
  }
}

const KEY = 'anytime-key';
const words = {
  401: 'A key is needed',
  403: 'Not allowed',
  404: 'Not found',
  409: 'Not now',
  429: 'The server is busy',
  503: 'The server is not ready',
};

/** request calls the server; it asks for a key where one is needed, and tries again with it. */
export async function request(method, path, {body, signal, headers} = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    let reply;
    try {
      reply = await fetch(path, {
        method, signal,
        headers: {
          ...(body !== undefined && {'Content-Type': 'application/json'}),
          ...(key && {Authorization: `Bearer ${key}`}),
          ...headers,
        },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (e) {
      if (signal?.aborted) throw e;
      throw new ApiError('The server cannot be reached', 'See that it is running, and that this machine is connected to it; then try again.', 0);
    }
    if (reply.ok) return reply;
    const error = (await reply.json().catch(() => ({}))).error ?? {};
    if (reply.status === 401 && await askForKey(key ? 'It does not take the key that was given.' : 'Its owner has one for you.')) continue;
    let message = error.message ?? `It answered ${reply.status}.`;
    const after = reply.headers.get('Retry-After');
    if (reply.status === 429 && after && !/try again/i.test(message)) message += ` Try again in ${after} s.`;
    throw new ApiError(words[reply.status] ?? (reply.status < 500 ? 'The request was refused' : 'The server failed'), message, reply.status, error.code);
  }
}

export const get = async (path, options) => (await request('GET', path, options)).json();
export const post = async (path, body, options) => (await request('POST', path, {...options, body: body ?? {}})).json();

let asking;

/** askForKey shows the dialog, once however many requests want a key. */
function askForKey(reason) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById('key');
    const input = document.getElementById('key-value');
    document.getElementById('key-why').textContent = reason;
    dialog.addEventListener('close', () => {
      const use = dialog.returnValue === 'use' && input.value.trim() !== '';
      if (use) sessionStorage.setItem(KEY, input.value.trim());
      input.value = '';
      asking = undefined;
      resolve(use);
    }, {once: true});
    dialog.returnValue = '';
    dialog.showModal();
  });
  return asking;
}

/** parse yields the events of a stream of server-sent events. */
async function* parse(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  let event = {};
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const lines = (rest + value).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      if (line === '') {
        if (event.data !== undefined) yield {...event, data: JSON.parse(event.data)};
        event = {};
      } else if (!line.startsWith(':')) {
        const at = line.indexOf(':');
        const field = line.slice(0, at);
        const text = line.slice(at + 1).replace(/^ /, '');
        if (field === 'data') event.data = (event.data ?? '') + text;
        else if (field === 'event') event.type = text;
        else if (field === 'id') event.id = Number(text);
      }
    }
  }
}

/** start asks a question and returns the run's id. The run goes on without this request; its events are read by events(). */
export async function start(path, body) {
  const leave = new AbortController();
  const reply = await request('POST', path, {body, signal: leave.signal, headers: {Accept: 'text/event-stream'}});
  try {
    for await (const e of parse(reply)) if (e.type === 'run') return e.data.id;
  } finally {
    leave.abort();
  }
  throw new ApiError('The server failed', 'It ended the stream before the run began.', 500);
}

/** pause waits, or less where the network comes back or signal ends. */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      removeEventListener('online', done);
      signal?.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    addEventListener('online', done);
    signal?.addEventListener('abort', done);
  });
}

/**
 * events yields a run's events behind an offset until the run ends. A lost connection is taken up again where it broke off. After an
 * event "reset" all events come again, from the first.
 */
export async function* events(id, {after = 0, signal, onState = () => {}}) {
  again: for (let tries = 0; ; tries++) {
    try {
      const reply = await request('GET', `solve/${encodeURIComponent(id)}/events?after=${after}`, {signal, headers: {Accept: 'text/event-stream'}});
      onState('live');
      for await (const e of parse(reply)) {
        tries = 0;
        if (e.type === 'reset') { // what was seen behind an offset is void: all is read again
          after = 0;
          yield e;
          continue again;
        }
        if (e.id) after = e.id;
        yield e;
      }
      const run = await get(`solve/${encodeURIComponent(id)}`, {signal});
      if (run.state !== 'running' && run.last_event <= after) return;
    } catch (e) {
      if (signal?.aborted) return;
      if (e instanceof ApiError && e.status >= 400 && e.status < 500 && e.status !== 429) throw e;
    }
    onState('lost');
    await pause(Math.min(250 * 2 ** tries, 5000), signal);
    if (signal?.aborted) return;
  }
}
