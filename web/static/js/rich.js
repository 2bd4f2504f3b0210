// Markdown and mathematics. What a model wrote is not trusted: it becomes markup only through DOMPurify, and formulas through KaTeX,
// which builds nodes and allows no links or raw markup.

import {load, style} from './vendor.js';

// Formulas in their usual marks, code first, where they are none; a bare \boxed{…} counts as one. $ wants no space inside and no digit behind.
const marks = /(```[\s\S]*?(?:```|$)|`[^`\n]*`)|\$\$([\s\S]{1,2000}?)\$\$|\\\[([\s\S]{1,2000}?)\\\]|\\\(([\s\S]{1,2000}?)\\\)|\$(?!\s)((?:\\.|[^$\\\n]){1,500}?)(?<!\s)\$(?!\d)|(\\boxed\s*\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})/g;

const longest = 50000; // characters; what is longer is shown as it is

/** rich returns nodes for a model's text. */
export async function rich(text) {
  if (text.length > longest) return text;
  const formulas = [];
  const source = text.replace(/[\ue000\ue001]/g, '').replace(marks, (all, code, block, bracket, round, dollar, boxed) => {
    if (code !== undefined) return code;
    formulas.push({tex: block ?? bracket ?? round ?? dollar ?? boxed, display: block !== undefined || bracket !== undefined, all});
    return `\ue000${formulas.length - 1}\ue001`;
  });
  await Promise.all([load('marked.umd.js'), load('purify.min.js'), formulas.length > 0 && load('katex.min.js')]);
  if (formulas.length > 0) style('katex.min.css');
  const fragment = window.DOMPurify.sanitize(window.marked.parse(source, {gfm: true, breaks: true, async: false, renderer: renderer()}), {
    RETURN_DOM_FRAGMENT: true,
    ALLOWED_TAGS: ['p', 'br', 'hr', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'em', 'strong', 'del', 'sub', 'sup', 'a', 'ul', 'ol', 'li', 'code', 'pre', 'blockquote',
      'table', 'thead', 'tbody', 'tr', 'th', 'td'],
    ALLOWED_ATTR: ['href', 'title', 'start', 'align'],
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

const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

// What HTML there is is shown and not parsed, not even to be thrown away. Images would be asked for from elsewhere.
function renderer() {
  return Object.assign(new window.marked.Renderer(), {
    html: ({text}) => (/^<\/?(br|sub|sup)\s*\/?>$/i.test(text) ? text : escape(text)),
    image: ({text}) => escape(text),
  });
}

/** result returns nodes for an answer, which is a formula or plain text: 2*3*4 emphasises nothing. */
export async function result(answer) {
  if (!/[\\^_{}]/.test(answer) || answer.length > 2000) return answer;
  await load('katex.min.js');
  style('katex.min.css');
  return formula({tex: answer.replace(/^\$+|\$+$/g, ''), display: false, all: answer});
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
