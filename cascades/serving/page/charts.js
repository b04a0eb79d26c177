// Small charts in SVG. Scales are linear; a chart is drawn anew whenever its data change.
'use strict';

const HEIGHT = 130, LEFT = 52, BOTTOM = 18, TOP = 8, RIGHT = 6;
const widthOf = (svg) => Math.max(svg.clientWidth, 160);  // a unit is a pixel: texts keep their size

function element(name, attributes, parent, text) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

// The next of 1, 2, 5, 10, ... that is at least the value.
function ceiling(value) {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * unit).find((step) => step >= value * (1 - 1e-9));
}

function frame(svg, label, high, format, low = 0) {
  svg.replaceChildren();
  svg.setAttribute('viewBox', `0 0 ${widthOf(svg)} ${HEIGHT}`);
  svg.setAttribute('aria-label', label);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - BOTTOM - TOP);
  for (const value of [low, (low + high) / 2, high]) {
    element('path', {class: 'axis', d: `M${LEFT} ${y(value)}H${widthOf(svg) - RIGHT}`}, svg);
    element('text', {x: LEFT - 5, y: y(value) + 4, 'text-anchor': 'end'}, svg, format(value));
  }
  return y;
}

const across = (svg, number, count) => LEFT + 4 + ((widthOf(svg) - LEFT - RIGHT - 8) * number) / Math.max(count - 1, 1);

// A mark of a request: a circle if the small model answered, a triangle if the large one did.
function mark(svg, x, y, author, size = 3) {
  if (author === 'large') {
    const d = `M${x} ${y - size}L${x + size} ${y + size * 0.8}H${x - size}Z`;
    element('path', {class: 'dot large', d}, svg);
  } else {
    element('circle', {class: 'dot small', cx: x, cy: y, r: size * 0.85}, svg);
  }
}

// A line, and a mark for each point that has a mark.
function lineChart(svg, {label, values, marks = [], high, format, caption}) {
  const y = frame(svg, label, high, format);
  marks.forEach((point, number) => {
    if (point && point.value !== null) mark(svg, across(svg, number, marks.length), y(Math.min(point.value, high)), point.author);
  });
  const path = values.map((value, number) => `${number ? 'L' : 'M'}${across(svg, number, values.length).toFixed(1)} ${y(value).toFixed(1)}`);
  if (path.length > 1) element('path', {class: 'line', d: path.join('')}, svg);
  element('text', {x: widthOf(svg) - RIGHT, y: HEIGHT - 4, 'text-anchor': 'end'}, svg, caption);
}

// Histogram of scores, colored by the side of the threshold that a bar is on.
function histogram(svg, {label, scores, threshold, policy, format}) {
  const width = widthOf(svg), height = HEIGHT, base = height - 18;
  svg.replaceChildren();
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.setAttribute('aria-label', label);
  element('path', {class: 'axis', d: `M4 ${base}H${width - 4}`}, svg);
  if (!scores.length) return;
  const low = scores[0], high = scores[scores.length - 1], range = high - low || 1, bins = 32;
  const x = (score) => 10 + ((Math.min(Math.max(score, low), high) - low) / range) * (width - 20);
  const counts = Array.from({length: bins}, () => [0, 0]);
  for (const score of scores) {
    const bin = Math.min(Math.floor(((score - low) / range) * bins), bins - 1);
    counts[bin][threshold !== null && score >= threshold ? 1 : 0] += 1;
  }
  const most = Math.max(...counts.map(([small, large]) => small + large));
  counts.forEach(([small, large], bin) => {
    const size = (count) => (count / most) * (base - 14), left = x(low + (bin / bins) * range);
    const common = {x: left + 0.5, width: (width - 20) / bins - 1};
    if (small) element('rect', {class: 'small', y: base - size(small), height: size(small), ...common}, svg);
    if (large) element('rect', {class: 'large', y: base - size(small) - size(large), height: size(large), ...common}, svg);
  });
  const line = (score, name) => {
    const at = score === null || score > high ? width - 3 : score <= low ? 5 : x(score);
    element('path', {class: name, d: `M${at} 4V${base}`}, svg);
  };
  if (policy !== undefined) line(policy, 'policy');
  line(threshold, 'cut');
  element('text', {x: 6, y: height - 4}, svg, format(low));
  element('text', {x: width - 6, y: height - 4, 'text-anchor': 'end'}, svg, format(high));
}
