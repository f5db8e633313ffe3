/* Tokens as words on the page. */

/* Spaces and control characters made visible, for a token by itself. */
export function visible(text) {
  const shown = text.replace(/\r/g, "␍").replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/[\u0000-\u001f\u007f-\u009f]/g, "�");
  return shown.replace(/^ +| +$/g, spaces => "·".repeat(spaces.length)) || "∅";
}

export const percent = p => p >= 0.9995 ? "100 %" : p >= 0.0995 ? `${(100 * p).toFixed(0)} %`
  : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : p > 0 ? "< 0.1 %" : "0";

export function element(name, properties = {}, ...children) {
  const { dataset, style, ...plain } = properties, made = Object.assign(document.createElement(name), plain);
  Object.assign(made.dataset, dataset);
  for (const key in style) made.style.setProperty(key, style[key]);
  made.append(...children);
  return made;
}

export const $ = id => document.getElementById(id);

/* The text of tokens in a row: those that are parts of a character come as their bytes, \xe2\x82. */
export function joined(tokens) {
  const parts = tokens.map(({ text }) => /^(\\x[0-9a-f]{2})+$/.test(text)
    ? text.slice(2).split("\\x").map(byte => parseInt(byte, 16)) : [...new TextEncoder().encode(text)]);
  return new TextDecoder().decode(new Uint8Array(parts.flat()));
}
