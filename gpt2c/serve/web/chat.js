/* The conversation: what was said, as it goes to the server, and as it is read. */

import { $, element } from "./words.js";

const log = $("log");

export class Chat {
  messages = [];
  forgotten = 0;

  say(role, content) {
    this.messages.push({ role, content });
    const who = { user: "You", assistant: "Model" }[role];
    log.append(element("li", { className: role }, element("b", {}, who), element("span", {}, content)));
    log.scrollTop = log.scrollHeight;
  }

  /* The last reply, as far as it has come. */
  reply(content) {
    if (this.messages.at(-1)?.role !== "assistant") this.say("assistant", "");
    this.messages.at(-1).content = content;
    log.lastChild.lastChild.textContent = content;
    log.scrollTop = log.scrollHeight;
  }

  /* So many exchanges, the oldest, are not in the model's context any more. */
  forgetOldest(count, context) {
    if (count <= this.forgotten) return;
    this.forgotten = count;
    const what = count === 1 ? "the oldest exchange is" : `the oldest ${count} exchanges are`;
    log.append(element("li", { className: "note" }, `The context of ${context} tokens is full: ${what} forgotten.`));
  }

  /* Takes the last message back, which was not answered. */
  unsay() {
    if (log.lastChild.className === "note") log.lastChild.remove();
    log.lastChild.remove();
    return this.messages.pop().content;
  }

  forget() {
    this.messages = [];
    this.forgotten = 0;
    log.replaceChildren();
  }
}
