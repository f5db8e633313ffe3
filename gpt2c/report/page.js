// Draws FIGURES (see figures.py) with plotly.js, as the buttons say.
"use strict";
const COLOURS = ["#2f7fd0", "#e0692e", "#2a9d6f", "#a569bd", "#d0453b", "#a5852a", "#1f95a6", "#c2568a"];
const DASHES = ["7px,4px", "2px,3px", "9px,3px,2px,3px", "14px,5px", "5px,2px"];
const SYMBOLS = { skip: "x", rollback: "triangle-left", resume: "triangle-right", stop: "square" };
const START = 0.03; // share of a run whose losses are so large that they would flatten the rest
const NEAR = 0.1, MARGIN = 0.05; // of the runs' own scale: how far off a known value is still shown
const LEVEL_POINTS = 100; // so that the pointer finds a level wherever it is
const PALE = "45";
const state = { tokens: false, log: false, start: false, smoothing: 2, hidden: new Set() };
const touch = matchMedia("(pointer: coarse)").matches; // dragging scrolls there, and does not zoom

const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = t => t.colour < 0 ? css("--soft") : COLOURS[t.colour % COLOURS.length];
const escaped = text => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
const wrapped = text => escaped(text.replace(/(.{50}\S*)\s/g, "$1\n")).replace(/\n/g, "<br>");
const scaled = (t, x) => state.tokens ? x * t.tokens : x;
const known = t => t.kind === "known" || t.kind === "level";
const dash = (figure, t) => DASHES[figure.traces.filter(known).indexOf(t) % DASHES.length];

/* The mean over as many neighbours on both sides; fewer near the start, where it would lie above a curve so steep. */
function smooth(y) {
  const width = Math.round(y.length * state.smoothing / 100), sums = [0];
  y.forEach((value, i) => sums.push(sums[i] + value));
  return y.map((_, i) => {
    const half = Math.min(Math.ceil(i / 4), width), end = Math.min(y.length, i + half + 1);
    return (sums[end] - sums[i - half]) / (end - i + half);
  });
}

function shown(figure, t, last) {
  const x = t.kind === "level" ? Array.from({ length: LEVEL_POINTS + 1 }, (_, i) => last * i / LEVEL_POINTS)
    : t.x.map(x => scaled(t, x));
  const trace = { x, y: t.y, name: escaped(t.name), type: "scatter", mode: "lines", hovertemplate: "%{y:.5~g}",
    line: { color: colour(t), width: 2 }, visible: !state.hidden.has(figure.id + t.name) };
  const kinds = {
    range: () => ({ x: [...x, ...x.slice().reverse()], y: [...t.greatest, ...t.least.slice().reverse()],
      fill: "toself", fillcolor: colour(t) + PALE, line: { color: colour(t) + PALE, width: 0.7 },
      hoverinfo: "skip", hovertemplate: null }),
    line: () => ({ y: t.smooth ? smooth(t.y) : t.y }),
    marks: () => ({ mode: "lines+markers", line: { color: colour(t), width: 1.3, dash: "dot" },
      marker: t.x.length > 40 ? { size: 4 } : { size: 7, line: { width: 1, color: css("--panel") } },
      ...(t.text && { text: t.text.map(escaped), hovertemplate: "%{y:.4f}, %{text}" }) }),
    events: () => ({ mode: "markers", text: t.text.map(wrapped), hovertemplate: "%{text}",
      marker: { symbol: t.event.map(name => SYMBOLS[name] || "circle"), size: 12, color: colour(t),
        line: { width: 1, color: css("--text") } } }),
    known: () => ({ mode: "lines+markers", marker: { size: 6 },
      line: { color: colour(t), width: 1.6, dash: dash(figure, t) } }),
    level: () => ({ y: x.map(() => t.y), line: { color: colour(t), width: 1.6, dash: dash(figure, t) } }),
  };
  return Object.assign(trace, kinds[t.kind]());
}

/* The scale of the runs' own curves without their first steps, and of what is known near them; undefined for one that
   holds everything. */
function scale(figure, traces, last, log) {
  const forth = log ? Math.log10 : y => y;
  const within = (t, i) => t.visible && t.fill === undefined
    ? t.y.filter((_, j) => (known(figure.traces[i]) || t.x[j] >= last * START) && t.x[j] <= last).map(forth) : [];
  const split = traces.map(within), of = wanted => split.filter((_, i) => known(figure.traces[i]) === wanted).flat();
  const own = of(false);
  if (state.start || !own.length) return undefined;
  const height = Math.max(...own) - Math.min(...own) || 0.1 * Math.abs(own[0]) || 0.1, near = height * NEAR;
  const seen = [...own, ...of(true).filter(y => y > Math.min(...own) - near && y < Math.max(...own) + near)];
  return [Math.min(...seen) - height * MARGIN, Math.max(...seen) + height * MARGIN];
}

function draw(figure) {
  const own = figure.traces.filter(t => !known(t));
  const last = Math.max(...own.map(t => scaled(t, Math.max(...t.x))), 1);
  const traces = figure.traces.map(t => shown(figure, t, last));
  const axis = { gridcolor: css("--line"), zeroline: false, linecolor: css("--line"), automargin: true };
  const log = state.log && figure.log;
  const range = figure.id === "loss" || figure.id === "hellaswag" ? scale(figure, traces, last, log) : undefined;
  const format = { mfu: ".1~%", speed: "~s", hellaswag: ".2f" }[figure.id];
  Plotly.react(figure.id, traces, {
    paper_bgcolor: css("--panel"), plot_bgcolor: css("--panel"), font: { color: css("--text"), size: 12 },
    margin: { l: 48, r: 14, t: 8, b: 40 }, showlegend: false, dragmode: touch ? false : "zoom", hovermode: "x unified",
    hoverlabel: { bgcolor: css("--back"), bordercolor: css("--line"), font: { color: css("--text"), size: 12 },
      namelength: 60 },
    xaxis: { ...axis, title: { text: state.tokens ? "tokens" : "step", standoff: 4 }, range: [0, last * 1.01],
      hoverformat: state.tokens ? undefined : ",d", exponentformat: "B",
      dtick: !state.tokens && last < 12 ? 1 : undefined, // there is no half of a step
      spikethickness: 1, spikedash: "solid", spikecolor: css("--soft") },
    yaxis: { ...axis, type: log ? "log" : "linear", range, rangemode: figure.id === "hellaswag" ? "normal" : "tozero",
      tickformat: format, exponentformat: "e",
      dtick: log && figure.id !== "loss" ? "D2" : undefined },
  }, { responsive: true, displayModeBar: false });
  if (figure.legend) legend(figure);
}

/* A button of the legend for each curve; it hides the curve and what belongs to it. */
function legend(figure) {
  const entries = figure.traces.filter(t => t.kind !== "range").map(t => {
    const button = document.createElement("button"), key = figure.id + t.name;
    const dashes = known(t) ? dash(figure, t).replace(/px/g, "") : t.kind === "marks" ? "2 3" : "none";
    const line = t.kind === "events" ? "" : `<path d="M1 6H25" stroke-width="2.2" stroke-dasharray="${dashes}"/>`;
    const mark = { marks: '<circle cx="13" cy="6" r="3.5" fill="currentColor"/>',
      events: '<path d="M9 2L17 10M9 10L17 2" stroke-width="2.5"/>' }[t.kind] || "";
    button.innerHTML = `<svg width="26" height="12" stroke="currentColor" fill="none">${line}${mark}</svg>`;
    button.firstChild.style.color = colour(t);
    button.append(t.name);
    button.setAttribute("aria-pressed", !state.hidden.has(key));
    button.onclick = () => { if (!state.hidden.delete(key)) state.hidden.add(key); draw(figure); };
    return button;
  });
  document.getElementById(figure.id + "-legend").replaceChildren(...entries);
}

function drawAll() {
  FIGURES.forEach(draw);
  const dots = document.querySelectorAll(".dot");
  for (const dot of dots) dot.style.background = COLOURS[dot.dataset.colour % COLOURS.length];
  const dark = document.documentElement.dataset.theme === "dark";
  const pressed = { "by-step": !state.tokens, "by-tokens": state.tokens, linear: !state.log, log: state.log,
    start: state.start, dark };
  for (const id in pressed) document.getElementById(id).setAttribute("aria-pressed", pressed[id]);
  document.querySelector(".bar output").value = state.smoothing ? state.smoothing + " %" : "none";
}

const slider = document.getElementById("smoothing");
const theme = dark => document.documentElement.dataset.theme = dark ? "dark" : "light";
const browser = matchMedia("(prefers-color-scheme: dark)");
const on = (id, change) => document.getElementById(id).addEventListener("click", () => { change(); drawAll(); });
on("by-step", () => state.tokens = false);
on("by-tokens", () => state.tokens = true);
on("linear", () => state.log = false);
on("log", () => state.log = true);
on("start", () => state.start = !state.start);
on("dark", () => theme(document.documentElement.dataset.theme !== "dark"));
slider.value = state.smoothing;
slider.addEventListener("input", () => { state.smoothing = +slider.value; drawAll(); });
browser.addEventListener("change", () => { theme(browser.matches); drawAll(); });
theme(browser.matches);
drawAll();
