/* From what the model says to what can come: the rules of gpt2c/generate.py, on the likeliest tokens and a histogram of
 * all others, so that the sliders need not ask the server. */

/* token: {top: [[id, text, logprob]...] the likeliest first, rest: {low, high, counts} or null}.
 * how: {temperature, topK (null: all), topP}.
 * Returns {bars: [{id, text, p, raw}...], rest}: probabilities with and without the rules. */
export function probabilities(token, how) {
  const { top, rest } = token, best = top[0][2];
  const scaled = t => logprob => t ? Math.exp((logprob - best) / t) : +(logprob >= best);
  const weight = scaled(how.temperature);
  let weights = top.map(([, , logprob]) => weight(logprob));
  if (!how.temperature) weights = weights.map((w, i) => +(i === 0)); // the first of equals
  let others = how.temperature ? restWeight(rest, weight) : 0;
  if (how.topK !== null && how.topK < top.length) {
    const least = top[how.topK - 1][2];
    weights = weights.map((w, i) => top[i][2] >= least ? w : 0);
    others = 0;
  } else if (how.topK !== null && how.topK <= top.length) others = 0;
  const whole = weights.reduce((a, b) => a + b, others);
  let p = weights.map(w => w / whole), left = others / whole;
  if (how.topP < 1) [p, left] = nucleus(p, left, how.topP);
  return { bars: top.map(([id, text, logprob], i) => ({ id, text, p: p[i], raw: Math.exp(logprob) })), rest: left };
}

function restWeight(rest, weight) {
  if (!rest) return 0;
  const width = (rest.high - rest.low) / rest.counts.length;
  return rest.counts.reduce((sum, count, i) => sum + count * weight(rest.low + (i + 0.5) * width), 0);
}

/* The smallest set of the likeliest that sums to topP or more; of the unnamed ones as much as it takes. */
function nucleus(p, left, topP) {
  let sum = 0;
  const kept = p.map(share => {
    const keep = sum < topP;
    sum += share;
    return keep ? share : 0;
  });
  const named = kept.reduce((a, b) => a + b, 0), others = named < topP ? Math.min(left, topP - named) : 0;
  return [kept.map(share => share / (named + others)), others / (named + others)];
}
