/* One head's attention: a heat map, and arcs from the chosen token over the words, or from one line of words to another.
 * A map's rows and columns are tokens of the text, but for an encoder-decoder also of the source. */

import { post } from "./api.js";
import { $, element, percent, visible } from "./words.js";

const LEAST = 0.01; // weights of thinner arcs are not drawn
const LABELLED = 48; // rows and columns with more tokens than this have no room for their words
const canvas = $("heat"), arcs = $("arcs");
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Attention {
  /* choose(index): a token of the text was chosen. */
  constructor(kinds, choose, tell) {
    this.kinds = kinds;
    this.choose = choose;
    this.tell = tell;
    $("kind").append(...kinds.map(kind => element("option", { value: kind.name }, kind.name)));
    for (const hidden of document.querySelectorAll(".kind")) hidden.hidden = kinds.length < 2;
    for (const id of ["kind", "layer", "head"]) $(id).addEventListener("input", () => this.load());
    canvas.addEventListener("pointermove", event => this.point(event));
    canvas.addEventListener("pointerleave", () => this.mark(this.row));
    canvas.addEventListener("click", event => this.cell(event) && this.pick(this.cell(event).row));
    canvas.addEventListener("keydown", event => this.key(event));
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
    $("layer").value = $("head").value = 1;
    this.limits();
  }

  /* The kind that is chosen, whose layers and heads the sliders have. */
  limits() {
    const kind = this.kinds.find(kind => kind.name === $("kind").value);
    for (const [id, most] of [["layer", kind.layers], ["head", kind.heads]]) {
      $(id).max = most;
      document.querySelector(`output[for="${id}"]`).value = `${$(id).value} of ${most}`;
    }
    return kind;
  }

  /* Another text {ids, source if it has one}, or another head: the map comes from the server. */
  async load(text = this.text) {
    this.text = text;
    const kind = this.limits();
    if (!text) return;
    const asked = this.asked = {}, head = { kind: kind.name, layer: $("layer").value - 1, head: $("head").value - 1 };
    try {
      const map = await post("/api/attention", { ...text, ...head });
      if (asked !== this.asked) return;
      Object.assign(this, { map, kind });
    } catch (error) {
      if (asked === this.asked) this.tell(error);
      return;
    }
    const count = map => map.rows.length;
    this.first = text.ids.length - count(this.map); // cross-attention has none for the first token, which nobody said
    const left = kind.keys === "text" && this.first, crosses = kind.queries !== kind.keys;
    $("attention").hidden = false;
    $("heat-hint").textContent = (crosses ? "Each row is a token that was said, its cells what the model looked at to say it."
      : "Each row is a token, its cells those that it looks at.") + " The colour follows the square root, so that small weights show."
      + (left ? ` The last ${count(this.map)} of ${text.ids.length} tokens.` : "");
    this.words();
    this.look(this.index ?? text.ids.length - 1);
  }

  /* There is no text; what has been asked for of the last one is not shown. */
  clear() {
    this.text = this.asked = this.map = null;
    $("attention").hidden = true;
  }

  /* The token `index` of the text is looked at. */
  look(index) {
    this.index = index;
    if (!this.map) return;
    const row = this.kind.queries === "text" ? index - this.first : this.row ?? 0;
    this.row = Math.max(0, Math.min(row, this.map.rows.length - 1));
    this.draw();
  }

  /* A row was chosen. */
  pick(row) {
    this.row = row;
    if (this.kind.queries === "text") this.choose(row + this.first);
    else this.draw();
  }

  words() {
    const { rows, columns } = this.map, isOneLine = this.kind.queries === this.kind.keys;
    this.keys = this.line(columns, isOneLine);
    this.queries = isOneLine ? this.keys : this.line(rows, true);
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const lines = isOneLine ? [this.svg, this.keys] : [this.queries, this.svg, this.keys];
    arcs.replaceChildren(element("div", { className: "strip" }, ...lines));
  }

  /* Words in a row, which are rows of the map if they may be picked. */
  line(texts, mayPick) {
    return element("div", { className: "words" }, ...texts.map((text, i) => {
      const word = element("span", { className: "word", dataset: { index: i } }, visible(text));
      if (!mayPick) return word;
      word.classList.add("query");
      word.addEventListener("pointerenter", () => this.mark(i));
      word.addEventListener("click", () => this.pick(i));
      return word;
    }));
  }

  mark(row) {
    if (!this.map?.weights[row]) return;
    this.drawArcs(row);
    this.drawHeat(row);
    this.tellRow(row);
  }

  draw() {
    if (this.map) this.mark(this.row);
  }

  tellRow(row, column) {
    const { rows, columns, weights, earlier } = this.map, word = visible(rows[row]);
    if (column !== undefined) {
      $("heat-told").textContent = `“${word}” looks at “${visible(columns[column])}”: ${percent(weights[row][column])}`;
      return;
    }
    const most = weights[row].map((w, i) => [w, i]).sort((a, b) => b[0] - a[0]).slice(0, 3).filter(([w]) => w >= LEAST);
    const before = earlier[row] >= LEAST ? `; tokens before the first shown ${percent(earlier[row])}` : "";
    $("heat-told").textContent = `“${word}” looks at `
      + most.map(([w, i]) => `“${visible(columns[i])}” ${percent(w)}`).join(", ") + before;
  }

  drawArcs(row) {
    const queries = [...this.queries.children], keys = [...this.keys.children], height = 120;
    const middle = word => word.offsetLeft + word.offsetWidth / 2, end = words => words.at(-1).offsetLeft + words.at(-1).offsetWidth;
    const weights = this.map.weights[row], from = middle(queries[row]);
    this.svg.setAttribute("width", Math.max(end(queries), end(keys)));
    this.svg.setAttribute("height", height);
    this.svg.replaceChildren(...weights.flatMap((w, i) => {
      if (w < LEAST) return [];
      const path = document.createElementNS(this.svg.namespaceURI, "path");
      path.setAttribute("d", this.queries === this.keys ? arc(from, middle(keys[i]), height)
        : `M${from} 0C${from} ${height / 2} ${middle(keys[i])} ${height / 2} ${middle(keys[i])} ${height}`);
      path.setAttribute("stroke-width", 1 + 7 * w);
      path.setAttribute("opacity", 0.25 + 0.75 * Math.sqrt(w));
      return [path];
    }));
    queries.forEach((word, i) => word.classList.toggle("from", i === row));
    keys.forEach((word, i) => word.style.setProperty("--weight", `${Math.round(85 * Math.sqrt(weights[i]))}%`));
    const at = queries[row];
    if (at.offsetLeft < arcs.scrollLeft || at.offsetLeft + at.offsetWidth > arcs.scrollLeft + arcs.clientWidth)
      arcs.scrollLeft = at.offsetLeft - arcs.clientWidth / 2;
  }

  drawHeat(row) {
    const { rows, columns, weights } = this.map, room = canvas.parentElement.clientWidth;
    const labels = rows.length <= LABELLED ? Math.min(90, 14 + 7 * Math.max(...rows.map(text => visible(text).length))) : 4;
    const width = Math.min(room, 620), cell = Math.min(26, (width - labels) / columns.length);
    const scale = devicePixelRatio || 1, wide = labels + cell * columns.length, high = labels + cell * rows.length;
    Object.assign(canvas, { width: wide * scale, height: high * scale });
    Object.assign(canvas.style, { width: `${wide}px`, height: `${high}px` });
    this.grid = { labels, cell };
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.fillStyle = css("--back");
    pen.fillRect(labels, labels, wide, high);
    pen.fillStyle = css("--accent");
    weights.forEach((line, i) => line.forEach((w, j) => {
      pen.globalAlpha = Math.sqrt(w);
      pen.fillRect(labels + j * cell, labels + i * cell, cell - (cell > 6 ? 1 : 0), cell - (cell > 6 ? 1 : 0));
    }));
    pen.globalAlpha = 1;
    pen.strokeStyle = css("--mark");
    pen.lineWidth = 2;
    pen.strokeRect(labels, labels + row * cell, cell * columns.length - 1, cell - 1);
    if (labels > 4 && cell >= 8) this.drawLabels(pen, row);
  }

  drawLabels(pen, row) {
    const { labels, cell } = this.grid, { rows, columns } = this.map;
    pen.font = `${Math.min(12, cell)}px ${css("--mono")}`;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    rows.forEach((text, i) => {
      pen.fillStyle = css(i === row ? "--mark" : "--soft");
      pen.fillText(visible(text), labels - 5, labels + (i + 0.5) * cell, labels - 5);
    });
    pen.fillStyle = css("--soft");
    pen.textAlign = "left";
    columns.forEach((text, j) => {
      pen.save();
      pen.translate(labels + (j + 0.5) * cell, labels - 5);
      pen.rotate(-Math.PI / 2);
      pen.fillText(visible(text), 0, 0, labels - 5);
      pen.restore();
    });
  }

  cell(event) {
    const { labels, cell } = this.grid, at = [event.offsetY, event.offsetX].map(x => Math.floor((x - labels) / cell));
    return at[0] in this.map.rows && at[1] in this.map.columns ? { row: at[0], column: at[1] } : null;
  }

  point(event) {
    const at = this.map && this.cell(event);
    if (!at) return;
    this.mark(at.row);
    this.tellRow(at.row, at.column);
  }

  key(event) {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step || !this.map) return;
    event.preventDefault();
    this.pick(Math.max(0, Math.min(this.map.rows.length - 1, this.row + step)));
  }
}

/* Over one line of words; to itself a loop. */
function arc(from, to, height) {
  const up = 1.3 * Math.min(height - 8, 14 + Math.abs(from - to) * 0.45), loop = from === to ? 9 : 0;
  return `M${from + loop} ${height}C${from + loop} ${height - up} ${to - loop} ${height - up} ${to - loop} ${height}`;
}
