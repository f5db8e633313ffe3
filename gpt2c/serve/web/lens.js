/* The logit lens: a row for each layer, the last on top, and a column for each token. */

import { post } from "./api.js";
import { $, element, percent, visible } from "./words.js";

const table = $("lens-table");

export class Lens {
  /* choose(index): a column was chosen, counted in the text. */
  constructor(choose, tell) {
    this.tell = tell;
    table.addEventListener("pointerover", event => this.tellCell(event.target.closest("td")));
    table.addEventListener("click", event => {
      const cell = event.target.closest("td");
      if (cell) choose(this.first + Number(cell.dataset.column));
    });
  }

  async load(ids) {
    const asked = this.asked = {};
    let found;
    try {
      found = await post("/api/lens", { ids });
    } catch (error) {
      if (asked === this.asked) this.tell(error);
      return;
    }
    if (asked !== this.asked) return;
    this.found = found;
    this.first = ids.length - found.tokens.length;
    $("lens").hidden = false;
    const heads = found.tokens.map(text => element("th", { scope: "col" }, visible(text)));
    const rows = found.layers.map((cells, layer) => this.row(cells, layer)).reverse();
    table.replaceChildren(element("thead", {}, element("tr", {}, element("th", {}, "token"), ...heads)), element("tbody", {}, ...rows));
    this.look(this.index ?? ids.length - 1);
  }

  row(cells, layer) {
    const name = layer === 0 ? "embedding" : layer === this.found.layers.length - 1 ? `layer ${layer}, output` : `layer ${layer}`;
    const made = cells.map((cell, column) => {
      const [text, p] = cell[0];
      return element("td", { dataset: { layer, column }, style: { "--weight": `${Math.round(90 * p)}%` } }, visible(text));
    });
    return element("tr", {}, element("th", { scope: "row" }, name), ...made);
  }

  /* There is no text; what has been asked for of the last one is not shown. */
  clear() {
    this.asked = this.found = null;
    $("lens").hidden = true;
  }

  /* The token `index` of the text is looked at. */
  look(index) {
    this.index = index;
    if (!this.found) return;
    const column = index - this.first;
    for (const cell of table.querySelectorAll(".at")) cell.classList.remove("at");
    for (const line of table.rows) line.cells[column + 1]?.classList.add("at");
    const scroll = table.parentElement, cell = table.rows[0].cells[column + 1], name = table.rows[0].cells[0];
    const left = (cell?.offsetLeft ?? 0) - name.offsetWidth, right = left + name.offsetWidth + (cell?.offsetWidth ?? 0);
    if (cell && (left < scroll.scrollLeft || right > scroll.scrollLeft + scroll.clientWidth)) scroll.scrollLeft = left - 40;
    this.tellCell(table.querySelector(`td[data-column="${column}"]`));
  }

  tellCell(cell) {
    if (!cell) return;
    const { layer, column } = cell.dataset, words = this.found.layers[layer][column];
    const after = layer === "0" ? "the embedding alone" : `layer ${layer}`;
    $("lens-told").textContent = `After “${visible(this.found.tokens[column])}”, ${after} would say `
      + words.map(([text, p]) => `“${visible(text)}” ${percent(p)}`).join(", ");
  }
}
