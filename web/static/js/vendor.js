// The vendored scripts and styles, each loaded when it is first needed.

const loaded = new Map();

/** load runs a script, once. */
export function load(name) {
  if (!loaded.has(name)) {
    loaded.set(name, new Promise((resolve, reject) => {
      const s = document.createElement('script');
      s.src = `assets/vendor/${name}`;
      s.onload = resolve;
      s.onerror = () => { loaded.delete(name); s.remove(); reject(new Error(`${name} could not be loaded: see that the server is running, then try again.`)); };
      document.head.append(s);
    }));
  }
  return loaded.get(name);
}

/** style applies a style sheet, once. */
export function style(name) {
  const href = `assets/vendor/${name}`;
  if (document.querySelector(`link[href="${href}"]`)) return;
  const l = document.createElement('link');
  Object.assign(l, {rel: 'stylesheet', href});
  document.head.append(l);
}
