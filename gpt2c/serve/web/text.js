/* The text, token by token: coloured by surprise, to be chosen by pointer or arrow keys. */

import { $, element, percent, visible } from "./words.js";

const MOST_SURPRISE = 7; // nats, where the colour is strongest: a probability of 0.1 %
const box = $("tokens");

export class TextView {
  /* look(index): a token is pointed at or chosen. */
  constructor(look) {
    this.look = look;
    this.tokens = [];
    box.addEventListener("pointerover", event => this.point(event.target));
    box.addEventListener("pointerleave", () => this.chosen >= 0 && this.look(this.chosen));
    box.addEventListener("click", event => this.choose(this.indexOf(event.target)));
    box.addEventListener("keydown", event => this.key(event));
  }

  show(tokens) {
    this.tokens = [];
    box.replaceChildren();
    box.hidden = $("legend").hidden = !tokens.length;
    this.chosen = -1;
    this.add(tokens);
  }

  /* More tokens at the end; the last is chosen, unless another one than the last has been. */
  add(tokens) {
    const follow = this.chosen === this.tokens.length - 1;
    box.append(...tokens.map((token, i) => this.word(token, this.tokens.length + i)));
    this.tokens.push(...tokens);
    if (follow) this.choose(this.tokens.length - 1);
  }

  word(token, index) {
    const word = element("span", { id: `token-${index}`, className: "token", role: "option", dataset: { index } });
    word.append(token.text.replace(/\r/g, "␍").replace(/\n/g, "↵\n"));
    word.setAttribute("aria-label", visible(token.text));
    word.setAttribute("aria-selected", "false");
    this.colour(word, token);
    return word;
  }

  /* The tokens' probabilities have become known. */
  recolour() {
    this.tokens.forEach((token, i) => this.colour(box.children[i], token));
  }

  colour(word, token) {
    word.classList.toggle("prompt", Boolean(token.prompt));
    if (token.logprob === undefined) return;
    word.style.setProperty("--surprise", `${Math.round(75 * Math.min(1, -token.logprob / MOST_SURPRISE))}%`);
    word.title = `${visible(token.text)}  ${percent(Math.exp(token.logprob))}`;
  }

  choose(index) {
    if (!(index in this.tokens)) return;
    box.children[this.chosen]?.setAttribute("aria-selected", "false");
    this.chosen = index;
    box.children[index].setAttribute("aria-selected", "true");
    box.setAttribute("aria-activedescendant", `token-${index}`);
    this.look(index);
  }

  point(target) {
    const index = this.indexOf(target);
    if (index in this.tokens) this.look(index);
  }

  indexOf = target => Number(target.dataset.index ?? -1);

  key(event) {
    const last = this.tokens.length - 1;
    const to = { ArrowLeft: this.chosen - 1, ArrowRight: this.chosen + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.choose(Math.max(0, Math.min(last, to)));
    box.children[this.chosen].scrollIntoView({ block: "nearest" });
  }
}
