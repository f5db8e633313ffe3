/* The page: what is asked for, the branches that come of it, and who is told which token is looked at. */

import { events, get, post } from "./api.js";
import { Attention } from "./attention.js";
import { Bars } from "./bars.js";
import { Chat } from "./chat.js";
import { Lens } from "./lens.js";
import { TextView } from "./text.js";
import { $, element, joined, visible } from "./words.js";

const model = await get("/api/model");
const READ_AT_ONCE = 128;
/* {tokens, from: index of the first token that is not the prompt's, name}. A token's isEnd: nothing comes after it. */
const branches = [];
let current = null, running = null;

const text = new TextView(look);
const translating = model.source !== null; // an encoder-decoder: the text is the translation of a source
const bars = new Bars(model.context, translating ? { temperature: 0, length: model.context } : {}, branch);
const attention = new Attention(model.attention, index => text.choose(index), problem);
const lens = new Lens(index => text.choose(index), problem);
const chat = new Chat();

function look(index) {
  bars.show(current.tokens[index], index === 0);
  if (running) return; // they show the last text until this one is whole
  attention.look(index);
  lens.look(index);
}

function problem(error) {
  $("problem").hidden = !error;
  $("problem").textContent = error?.message ?? "";
}

/* Shows the text that `body` asks for as it comes. known: the first tokens of the prompt, whose alternatives are known.
 * Returns whether it came to an end. */
async function write(body, name, known = []) {
  running?.abort();
  const stopping = running = new AbortController(), how = bars.settings();
  busy(true);
  problem(null);
  const settings = { temperature: how.temperature, top_k: how.topK, top_p: how.topP, length: how.length };
  let whole = false;
  try {
    for await (const event of events("/api/write", { ...body, ...settings }, stopping.signal)) {
      if (stopping.signal.aborted) break; // what has come already is of a text that is not shown any more
      if (event.forgotten) chat.forgetOldest(event.forgotten, model.context);
      if (event.prompt) open(event.prompt, name, known, body.source);
      else grow(event);
    }
    whole = true;
  } catch (error) {
    if (error.name !== "AbortError") problem(error);
  }
  if (stopping !== running) return whole; // another text has begun
  running = null;
  busy(false);
  if (current) await inside();
  return whole;
}

function open(prompt, name, known, source) {
  const tokens = prompt.map((token, i) => known[i] ?? { ...token, prompt: true });
  const from = known.length ? known.from : tokens.length;
  if (known.length) delete tokens.at(-1).prompt; // the alternative that was chosen
  current = { tokens, from, name, source, started: performance.now(), written: 0 };
  branches.push(current);
  showBranches();
  text.show(tokens.slice());
}

function grow({ tokens, finish }) {
  current.tokens.push(...tokens);
  if (finish === "stop") current.tokens.at(-1).isEnd = true;
  current.written += tokens.length;
  text.add(tokens);
  const seconds = (performance.now() - current.started) / 1000;
  $("speed").textContent = `${current.written} tokens, ${(current.written / seconds).toFixed(0)} a second`;
  if (chatting()) chat.reply(said(current));
}

/* What the model wrote, as a text. */
const said = ({ tokens, from }) => joined(tokens.slice(from).filter(token => !token.isEnd));

/* What the whole text's tokens and layers say. The prompt's tokens are told about now, and those that came too fast. */
async function inside() {
  const shown = current, ids = shown.tokens.map(token => token.id);
  const asked = translating ? { ids, source: shown.source } : { ids };
  const unknown = [...ids.keys()].filter(i => i && shown.tokens[i].logprob === undefined);
  for (let at = 0; at < unknown.length; at += READ_AT_ONCE) {
    const positions = unknown.slice(at, at + READ_AT_ONCE);
    try {
      const { tokens } = await post("/api/read", { ids, positions });
      tokens.forEach((token, i) => Object.assign(shown.tokens[positions[i]], token));
    } catch (error) {
      problem(error);
      break;
    }
    if (shown !== current || running) return;
    text.recolour();
  }
  look(text.chosen);
  await Promise.all([attention.load(asked), model.lens && lens.load(ids)]);
  if (shown === current) look(text.chosen);
}

/* Goes on with the token `id` instead of the one that is looked at. */
function branch(id, word) {
  const at = current.tokens.indexOf(bars.token), known = current.tokens.slice(0, at);
  if (id === current.tokens[at].id) return;
  const logprob = bars.token.top.find(one => one[0] === id)[2];
  known[at] = { ...bars.token, id, text: word, logprob, prompt: false, isEnd: false };
  known.from = Math.min(current.from, at);
  $("tokens").focus({ preventScroll: true }); // the button that was chosen goes with its bars
  const body = { ids: known.map(token => token.id), ...(translating && { source: current.source }) };
  write(body, `${visible(current.tokens[at].text)} → ${visible(word)}`, known);
}

function showBranches() {
  $("branches").hidden = branches.length < 2;
  $("branches").replaceChildren(...branches.map((one, i) => {
    const button = element("button", { type: "button" }, `${i + 1}: ${one.name}`);
    button.setAttribute("aria-pressed", one === current);
    button.addEventListener("click", () => {
      running?.abort();
      current = one;
      showBranches();
      text.show(one.tokens.slice());
      if (chatting()) chat.reply(said(one));
      inside();
    });
    return button;
  }));
}

function busy(yes) {
  for (const button of document.querySelectorAll("[data-start]")) button.disabled = yes;
  for (const button of document.querySelectorAll("[data-stop]")) button.disabled = !yes;
  $("tokens").setAttribute("aria-busy", yes);
}

const chatting = () => $("mode-chat").getAttribute("aria-pressed") === "true";

function clear() {
  branches.length = 0;
  current = null;
  text.show([]);
  for (const view of [bars, attention, lens]) view.clear();
  showBranches();
  problem(null);
}

$("prompt-form").addEventListener("submit", event => {
  event.preventDefault();
  clear();
  write({ [translating ? "source" : "text"]: $("prompt").value }, "as it came");
});

$("chat-form").addEventListener("submit", async event => {
  event.preventDefault();
  const message = $("message").value.trim();
  if (!message || running) return;
  clear();
  chat.say("user", message);
  $("message").value = "";
  await write({ messages: chat.messages.slice() }, "as it came");
  if (chat.messages.at(-1)?.role === "user") $("message").value = chat.unsay();
});

$("forget").addEventListener("click", () => {
  running?.abort();
  chat.forget();
  clear();
});

for (const button of document.querySelectorAll("[data-stop]")) button.addEventListener("click", () => running?.abort());

function enter(field, wanted) {
  field.addEventListener("keydown", event => {
    if (event.key !== "Enter" || event.isComposing || !wanted(event)) return;
    event.preventDefault();
    field.form.requestSubmit();
  });
}
enter($("prompt"), event => event.ctrlKey || event.metaKey);
enter($("message"), event => !event.shiftKey);

for (const mode of ["write", "chat"]) $(`mode-${mode}`).addEventListener("click", () => {
  running?.abort();
  for (const one of ["write", "chat"]) $(`mode-${one}`).setAttribute("aria-pressed", one === mode);
  $("prompt-form").hidden = mode === "chat";
  $("chat-form").hidden = mode !== "chat";
  clear();
});

const system = matchMedia("(prefers-color-scheme: dark)");
function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", dark);
  attention.draw();
}
$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme !== "dark"));
system.addEventListener("change", () => theme(system.matches));
theme(system.matches);

document.title = `${model.name} - gpt2c`;
$("name").textContent = model.name;
$("facts").textContent = model.facts;
if (translating) {
  document.querySelector('label[for="prompt"]').textContent = "Source";
  $("prompt").placeholder = "The words to translate";
  $("prompt").form.querySelector("[data-start]").textContent = "Translate";
  $("known").hidden = false;
  $("known").append(model.source);
}
$("modes").hidden = !model.chat;
$("prompt").focus();
