/* The conversation: what was said, as it goes to the server, and as it is read. */

import { $, element } from "./words.js";

const log = $("log");

export class Chat {
  messages = [];

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

  /* Takes the last message back, which was not answered. */
  unsay() {
    log.lastChild.remove();
    return this.messages.pop().content;
  }

  forget() {
    this.messages = [];
    log.replaceChildren();
  }
}
