/* What could have come instead of a token, under the sliders' rules; a click branches. */

import { probabilities } from "./sampling.js";
import { $, element, percent, visible } from "./words.js";

const SHOWN = 12;
const ALL = 41; // top-k at its end: no limit
const NOTHING = "Write something: each token's alternatives appear here.";
const START = { temperature: 0.8, "top-k": ALL, "top-p": 1, length: 100 };

export class Bars {
  /* start: sliders that begin elsewhere. branch(id, text): an alternative was chosen. */
  constructor(context, start, branch) {
    this.branch = branch;
    $("length").max = context;
    const values = { ...START, length: Math.min(START.length, context / 2), ...start };
    for (const name in values) {
      $(name).value = values[name];
      $(name).addEventListener("input", () => this.draw());
    }
    this.clear();
    this.draw();
  }

  settings() {
    const k = Number($("top-k").value);
    const [temperature, topP, length] = ["temperature", "top-p", "length"].map(id => Number($(id).value));
    return { temperature, topK: k >= ALL ? null : k, topP, length };
  }

  show(token, isFirst) {
    this.token = token;
    this.isFirst = isFirst;
    this.draw();
  }

  /* Nothing is looked at. */
  clear() {
    this.token = null;
    $("chosen").textContent = "…";
    $("bars-hint").textContent = NOTHING;
    $("bars").replaceChildren();
  }

  draw() {
    const how = this.settings();
    const told = { temperature: how.temperature.toFixed(2), "top-k": how.topK ?? "all", "top-p": how.topP.toFixed(2),
      length: how.length };
    for (const name in told) document.querySelector(`output[for="${name}"]`).value = told[name];
    if (!this.token) return;
    $("chosen").textContent = visible(this.token.text);
    const known = Boolean(this.token.top?.length);
    $("bars-hint").textContent = known ? "Choose one to branch from here. Bar: probability as the sliders have it; mark: as the model says."
      : this.isFirst ? "The first token has no text before it that could foretell it."
      : "Its alternatives come when the text is whole.";
    $("bars").replaceChildren(...(known ? this.rows(probabilities(this.token, how)) : []));
  }

  rows({ bars, rest }) {
    const shown = bars.slice(0, SHOWN);
    const chosen = bars.find(bar => bar.id === this.token.id);
    if (chosen && !shown.includes(chosen)) shown[SHOWN - 1] = chosen;
    const others = bars.filter(bar => !shown.includes(bar));
    const left = others.reduce((sum, bar) => sum + bar.p, rest);
    const raw = Math.max(0, 1 - shown.reduce((sum, bar) => sum + bar.raw, 0));
    const last = element("li", { className: "others" }, bar("all others", left, raw));
    return [...shown.map(one => this.row(one)), last];
  }

  row(one) {
    const own = one.id === this.token.id;
    const button = element("button", { type: "button", title: own ? "the token that came" : "branch here" });
    button.append(bar(visible(one.text), one.p, one.raw));
    button.setAttribute("aria-label", `${visible(one.text)}, ${percent(one.p)}${own ? ", the token that came" : ""}`);
    button.addEventListener("click", () => this.branch(one.id, one.text));
    return element("li", { className: own ? "own" : one.p ? "" : "cut" }, button);
  }
}

function bar(text, p, raw) {
  const track = element("span", { className: "track" }, element("i", { style: { width: `${100 * p}%` } }),
    element("b", { style: { left: `${100 * raw}%` } }));
  return element("span", { className: "bar" }, element("span", { className: "word" }, text), track,
    element("span", { className: "share" }, percent(p)));
}
