// Markdown and mathematics. What a model wrote is not trusted: it becomes markup only through DOMPurify, and formulas through KaTeX,
// which builds nodes and allows no links or raw markup.

const loaded = new Map();

/** load runs one of the vendored scripts, once. */
export function load(name) {
  if (!loaded.has(name)) {
    loaded.set(name, new Promise((resolve, reject) => {
      const s = document.createElement('script');
      s.src = `assets/vendor/${name}`;
      s.onload = resolve;
      s.onerror = () => { loaded.delete(name); reject(new Error(`${name} could not be loaded`)); };
      document.head.append(s);
    }));
  }
  return loaded.get(name);
}

function style(name) {
  if (!document.querySelector(`link[href="assets/vendor/${name}"]`)) {
    const l = document.createElement('link');
    l.rel = 'stylesheet';
    l.href = `assets/vendor/${name}`;
    document.head.append(l);
  }
}

// Formulas in their usual marks, code first, where they are none; a bare \boxed{…} counts as one. $ wants no space inside and no digit behind.
const marks = /(```[\s\S]*?(?:```|$)|`[^`\n]*`)|\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\]|\\\(([\s\S]+?)\\\)|\$(?!\s)((?:\\.|[^$\\\n])+?)(?<!\s)\$(?!\d)|(\\boxed\s*\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})/g;

/** rich returns nodes for a model's text. */
export async function rich(text) {
  const formulas = [];
  const source = text.replace(/[\ue000\ue001]/g, '').replace(marks, (all, code, block, bracket, round, dollar, boxed) => {
    if (code !== undefined) return code;
    formulas.push({tex: block ?? bracket ?? round ?? dollar ?? boxed, display: block !== undefined || bracket !== undefined, all});
    return `\ue000${formulas.length - 1}\ue001`;
  });
  await Promise.all([load('marked.umd.js'), load('purify.min.js'), formulas.length > 0 && load('katex.min.js')]);
  if (formulas.length > 0) style('katex.min.css');
  const fragment = window.DOMPurify.sanitize(window.marked.parse(source, {gfm: true, breaks: true, async: false}), {
    RETURN_DOM_FRAGMENT: true,
    FORBID_TAGS: ['style', 'form', 'input', 'button', 'textarea', 'select', 'iframe', 'object', 'embed', 'audio', 'video', 'img', 'svg', 'math'],
    FORBID_ATTR: ['style', 'class', 'id', 'name'],
    ALLOWED_URI_REGEXP: /^(?:https?:|mailto:|#)/i,
  });
  for (const a of fragment.querySelectorAll('a')) {
    a.rel = 'noopener noreferrer nofollow';
    a.target = '_blank';
  }
  const walker = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) if (walker.currentNode.data.includes('\ue000')) texts.push(walker.currentNode);
  for (const node of texts) {
    const parts = node.data.split(/\ue000(\d+)\ue001/);
    node.replaceWith(...parts.map((part, i) => (i % 2 ? formula(formulas[Number(part)]) : part)));
  }
  return fragment;
}

function formula({tex, display, all}) {
  const span = document.createElement('span');
  try {
    window.katex.render(tex, span, {displayMode: display, throwOnError: true, trust: false, strict: 'ignore', maxSize: 20, maxExpand: 200});
  } catch {
    span.textContent = all; // not a formula after all
  }
  return span;
}
