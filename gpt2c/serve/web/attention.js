/* One head's attention: a heat map, and arcs from the chosen token over the words. */

import { post } from "./api.js";
import { $, element, percent, visible } from "./words.js";

const LEAST = 0.01; // weights of thinner arcs are not drawn
const LABELLED = 48; // rows and columns with more tokens than this have no room for their words
const canvas = $("heat"), arcs = $("arcs");
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Attention {
  /* choose(row): a row of the map was chosen, counted from its first. */
  constructor(kinds, choose, tell) {
    this.kinds = kinds;
    this.choose = choose;
    this.tell = tell;
    $("kind").append(...kinds.map(kind => element("option", { value: kind.name }, kind.name)));
    for (const hidden of document.querySelectorAll(".kind")) hidden.hidden = kinds.length < 2;
    for (const id of ["kind", "layer", "head"]) $(id).addEventListener("input", () => this.load());
    canvas.addEventListener("pointermove", event => this.point(event));
    canvas.addEventListener("pointerleave", () => this.mark(this.row));
    canvas.addEventListener("click", event => this.cell(event) && this.choose(this.cell(event).row));
    canvas.addEventListener("keydown", event => this.key(event));
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
    $("layer").value = $("head").value = 1;
    this.limits();
  }

  limits() {
    const kind = this.kinds.find(kind => kind.name === $("kind").value);
    for (const [id, most] of [["layer", kind.layers], ["head", kind.heads]]) {
      $(id).max = most;
      document.querySelector(`output[for="${id}"]`).value = `${$(id).value} of ${most}`;
    }
    return kind;
  }

  /* Another text, or another head: the map comes from the server. */
  async load(ids = this.ids) {
    this.ids = ids;
    const kind = this.limits();
    if (!ids) return;
    const asked = this.asked = {};
    try {
      const map = await post("/api/attention", { ids, kind: kind.name, layer: $("layer").value - 1, head: $("head").value - 1 });
      if (asked !== this.asked) return;
      this.map = map;
    } catch (error) {
      this.tell(error);
      return;
    }
    this.first = ids.length - this.map.rows.length;
    $("attention").hidden = false;
    $("heat-hint").textContent = "Each row is a token, its cells those that it looks at. The colour follows the square root, "
      + "so that small weights show." + (this.first ? ` The last ${this.map.rows.length} of ${ids.length} tokens.` : "");
    this.row = Math.min(this.row ?? Infinity, this.map.rows.length - 1);
    this.words();
    this.draw();
  }

  /* The token `index` of the text is looked at. */
  look(index) {
    this.row = index - (this.first ?? 0);
    if (this.map) this.draw();
  }

  words() {
    const words = this.map.columns.map((text, i) => {
      const word = element("span", { className: "word", dataset: { index: i } }, visible(text));
      word.addEventListener("pointerenter", () => this.mark(i));
      word.addEventListener("click", () => this.choose(i));
      return word;
    });
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    arcs.replaceChildren(element("div", { className: "strip" }, this.svg, element("div", { className: "words" }, ...words)));
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
    const words = [...arcs.querySelectorAll(".word")], height = 120;
    const middle = word => word.offsetLeft + word.offsetWidth / 2, from = middle(words[row]);
    const weights = this.map.weights[row];
    this.svg.setAttribute("width", words.at(-1).offsetLeft + words.at(-1).offsetWidth);
    this.svg.setAttribute("height", height);
    this.svg.replaceChildren(...weights.flatMap((w, i) => {
      if (w < LEAST) return [];
      const to = middle(words[i]), up = Math.min(height - 8, 14 + Math.abs(from - to) * 0.45);
      const path = document.createElementNS(this.svg.namespaceURI, "path");
      const loop = i === row ? 9 : 0; // to itself
      path.setAttribute("d", `M${from + loop} ${height}C${from + loop} ${height - up * 1.3} ${to - loop} ${height - up * 1.3} ${to - loop} ${height}`);
      path.setAttribute("stroke-width", 1 + 7 * w);
      path.setAttribute("opacity", 0.25 + 0.75 * Math.sqrt(w));
      return [path];
    }));
    words.forEach((word, i) => {
      word.classList.toggle("from", i === row);
      word.style.setProperty("--weight", `${Math.round(85 * Math.sqrt(weights[i]))}%`);
    });
    const strip = arcs, at = words[row];
    if (at.offsetLeft < strip.scrollLeft || at.offsetLeft + at.offsetWidth > strip.scrollLeft + strip.clientWidth)
      strip.scrollLeft = at.offsetLeft - strip.clientWidth / 2;
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
    this.choose(Math.max(0, Math.min(this.map.rows.length - 1, this.row + step)));
  }
}
