#include "trainer/report_page.h"

namespace levin {

const char* const report_chart_script = R"js(
'use strict';
const view = { axis: 'step', smooth: 0, log: false, clip: false, hidden: new Set(), range: null, hover: null };
const charts = [];

const svgElement = (name, attributes = {}, parent = null) => {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (parent) parent.append(element);
  return element;
};
const element = (name, attributes = {}, ...children) => {
  const result = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) result.addEventListener(key.slice(2), value); else result.setAttribute(key, value);
  }
  result.append(...children.filter(child => child !== null));
  return result;
};
const trim = text => text.includes('.') ? text.replace(/\.?0+$/, '') : text;
const format = value => {
  if (value === null || !Number.isFinite(value)) return 'NaN';
  const size = Math.abs(value);
  if (size === 0) return '0';
  for (const [unit, name] of [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e4, 'K']])
    if (size >= unit) return trim((value / (unit === 1e4 ? 1e3 : unit)).toPrecision(4)) + name;
  if (size < 1e-3) return trim(value.toExponential(2).split('e')[0]) + 'e' + value.toExponential(2).split('e')[1];
  return trim(value.toPrecision(5));
};
const axisName = { step: 'step', tokens: 'tokens', hours: 'hours of training' };
const exactX = x => view.axis === 'step' ? 'step ' + Math.round(x).toLocaleString('en') : format(x) + ' ' + view.axis;

function linearTicks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find(factor => factor * power >= raw * 0.999) * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; ++i) ticks.push(i * step);
  return ticks;
}
function logTicks(low, high, count) {
  const ticks = [], decades = Math.log10(high / low), every = Math.max(1, Math.ceil(decades / count));
  const factors = decades > 3 ? [1] : decades > 1.2 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); ++power)
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= low && tick <= high && power % every === 0) ticks.push(tick);
    }
  return ticks.length >= 3 ? ticks : linearTicks(low, high, count);
}

// Exponential moving averages from both sides, so that the curve does not lag; a gap stays a gap.
function smoothed(values, weight) {
  const sums = values.map(() => 0), norms = values.map(() => 0);
  const sweep = order => {
    let mean = 0, norm = 0;
    for (const i of order) {
      if (values[i] === null) continue;
      mean = weight * mean + (1 - weight) * values[i];
      norm = weight * norm + (1 - weight);
      sums[i] += mean; norms[i] += norm;
    }
  };
  const order = [...values.keys()];
  sweep(order);
  sweep(order.reverse());
  return values.map((value, i) => value === null ? null : sums[i] / norms[i]);
}
// Index of the x nearest to `wanted`; xs ascend.
function nearest(xs, wanted) {
  let low = 0, high = xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < wanted) low = middle + 1; else high = middle;
  }
  return low > 0 && wanted - xs[low - 1] < xs[low] - wanted ? low - 1 : low;
}

class Chart {
  // curves: [{name, color, data: {step, tokens, hours, value}, run, dots, exact}]; dots: dashed with a dot at every
  // value; exact: never smoothed.
  constructor(title, unit, curves, options = {}) {
    Object.assign(this, { title, unit, curves, options, height: options.wide ? 340 : 220 });
    this.svg = svgElement('svg', { class: 'plot', height: this.height, role: 'img', 'aria-label': title });
    this.tip = element('div', { class: 'tip', hidden: '' });
    this.legend = element('div', { class: 'legend' });
    this.card = element('div', { class: options.wide ? 'card wide' : 'card' },
      element('header', {}, element('h2', {}, title, element('span', { class: 'soft' }, unit ? '  ' + unit : '')), this.legend), this.svg, this.tip);
    this.svg.addEventListener('pointermove', event => this.move(event));
    this.svg.addEventListener('pointerleave', () => { view.hover = null; this.drag = null; charts.forEach(c => c.cross()); });
    this.svg.addEventListener('pointerdown', event => { this.drag = this.xAt(event); });
    this.svg.addEventListener('pointerup', event => this.release(event));
    this.svg.addEventListener('dblclick', () => { view.range = null; redraw(); });
    charts.push(this);
  }
  shown() { return this.curves.filter(c => !view.hidden.has(c.run) && c.data.value.length); }
  xAt(event) {
    const box = this.svg.getBoundingClientRect();
    const part = (event.clientX - box.left - this.left) / (this.right - this.left);
    return this.x0 + Math.min(1, Math.max(0, part)) * (this.x1 - this.x0);
  }
  move(event) { view.hover = { x: this.xAt(event), chart: this }; charts.forEach(c => c.cross()); }
  release(event) {
    const end = this.xAt(event), start = this.drag;
    this.drag = null;
    if (start !== null && Math.abs(end - start) > 0.01 * (this.x1 - this.x0)) {
      view.range = [Math.min(start, end), Math.max(start, end)];
      redraw();
    }
  }
  draw() {
    const width = Math.max(260, this.svg.clientWidth || 600), curves = this.shown(), svg = this.svg;
    const logarithmic = this.options.canLog && view.log;
    svg.replaceChildren();
    svg.setAttribute('viewBox', `0 0 ${width} ${this.height}`);
    this.lines = curves.map(curve => {
      const raw = curve.data.value, weight = curve.dots || curve.exact ? 0 : view.smooth;
      return { curve, xs: curve.data[view.axis], raw, values: weight ? smoothed(raw, weight) : raw, faint: weight > 0 };
    });
    const all = this.lines.flatMap(line => [line.xs[0], line.xs[line.xs.length - 1]]);
    if (!all.length) {
      svgElement('text', { x: width / 2, y: this.height / 2, 'text-anchor': 'middle' }, svg).textContent = 'no values';
      this.x0 = 0; this.x1 = 1; this.left = 0; this.right = width;
      return;
    }
    [this.x0, this.x1] = view.range || [Math.min(...all), Math.max(...all)];
    if (!(this.x1 > this.x0)) { this.x0 -= 0.5; this.x1 += 0.5; }
    const inside = [];
    for (const line of this.lines) line.xs.forEach((x, i) => {
      const value = line.raw[i];
      if (x >= this.x0 && x <= this.x1 && value !== null && (!logarithmic || value > 0)) inside.push(value);
    });
    inside.sort((a, b) => a - b);
    const cut = view.clip ? Math.floor(inside.length * 0.01) : 0;
    let low = inside.length ? inside[cut] : 0, high = inside.length ? inside[inside.length - 1 - cut] : 1;
    if (this.options.zero && !logarithmic) low = Math.min(0, low);
    if (!(high > low)) { const pad = Math.abs(low) * 0.1 || 1; if (!this.options.zero) low -= pad; high += pad; }
    if (logarithmic && low <= 0) low = high / 10;
    const project = logarithmic ? Math.log : value => value;
    const margin = 0.05 * (project(high) - project(low)), top = 10, bottom = this.height - 38;
    let p0 = project(low) - (this.options.zero && low === 0 ? 0 : margin), p1 = project(high) + margin;
    const back = logarithmic ? Math.exp : value => value;
    const ticks = logarithmic ? logTicks(back(p0), back(p1), 6) : linearTicks(p0, p1, this.options.wide ? 6 : 4);
    const labels = ticks.map(format);
    this.left = 14 + 6.6 * Math.max(...labels.map(label => label.length), 2);
    this.right = width - 12;
    this.toX = x => this.left + (x - this.x0) / (this.x1 - this.x0) * (this.right - this.left);
    this.toY = value => bottom - (project(value) - p0) / (p1 - p0) * (bottom - top);
    this.top = top; this.bottom = bottom;
    ticks.forEach((tick, i) => {
      const y = this.toY(tick);
      svgElement('line', { class: 'grid', x1: this.left, x2: this.right, y1: y, y2: y }, svg);
      svgElement('text', { x: this.left - 7, y: y + 4, 'text-anchor': 'end' }, svg).textContent = labels[i];
    });
    for (const tick of linearTicks(this.x0, this.x1, Math.max(2, Math.floor(width / 110)))) {
      if (view.axis === 'step' && !Number.isInteger(tick)) continue;
      const x = this.toX(tick);
      svgElement('line', { class: 'axis', x1: x, x2: x, y1: bottom, y2: bottom + 4 }, svg);
      const label = svgElement('text', { x, y: bottom + 17, 'text-anchor': x > this.right - 14 ? 'end' : 'middle' }, svg);
      label.textContent = format(tick);
    }
    svgElement('line', { class: 'axis', x1: this.left, x2: this.right, y1: bottom, y2: bottom }, svg);
    svgElement('text', { x: (this.left + this.right) / 2, y: bottom + 33, 'text-anchor': 'middle' }, svg).textContent = axisName[view.axis];
    const id = 'clip' + charts.indexOf(this), clip = svgElement('clipPath', { id }, svg);
    svgElement('rect', { x: this.left, y: top - 4, width: this.right - this.left, height: bottom - top + 8 }, clip);
    const group = svgElement('g', { 'clip-path': `url(#${id})` }, svg);
    for (const line of this.lines) {
      if (line.faint) this.path(group, line, line.raw, { 'stroke-width': 1, opacity: 0.22 });
      this.path(group, line, line.values, { 'stroke-width': line.curve.dots ? 1.5 : 1.7, 'stroke-dasharray': line.curve.dots ? '5 4' : '' });
      if (line.curve.dots && line.xs.length < 400) line.xs.forEach((x, i) => {
        if (line.raw[i] !== null) svgElement('circle', { cx: this.toX(x), cy: this.toY(line.raw[i]), r: 2.6, fill: line.curve.color }, group);
      });
      line.xs.forEach((x, i) => {  // what is no number is marked at the top
        if (line.raw[i] !== null) return;
        const at = this.toX(x);
        svgElement('path', { d: `M${at - 4} ${top - 3}h8l-4 7z`, fill: 'var(--bad)' }, group);
      });
    }
    this.overlay = svgElement('g', {}, svg);
    this.legend.replaceChildren(...curves.length > 1 || this.options.wide ? this.lines.map(({ curve }) => {
      const sample = svgElement('svg', { width: 18, height: 8 });
      svgElement('line', { x1: 0, x2: 18, y1: 4, y2: 4, stroke: curve.color, 'stroke-width': 2, 'stroke-dasharray': curve.dots ? '5 3' : '' }, sample);
      return element('span', { class: 'key' }, sample, curve.name);
    }) : []);
    this.cross();
  }
  path(group, line, values, attributes) {
    let text = '', pen = 'M', run = 0, lastX = 0, lastY = 0;
    const lone = [];
    values.forEach((value, i) => {
      const y = value === null ? NaN : this.toY(value);
      if (!Number.isFinite(y)) { if (run === 1) lone.push([lastX, lastY]); pen = 'M'; run = 0; return; }
      lastX = this.toX(line.xs[i]).toFixed(1); lastY = y.toFixed(1);
      text += pen + lastX + ' ' + lastY;
      pen = 'L'; ++run;
    });
    if (run === 1) lone.push([lastX, lastY]);
    svgElement('path', { d: text || 'M0 0', fill: 'none', stroke: line.curve.color, 'stroke-linejoin': 'round', ...attributes }, group);
    for (const [cx, cy] of lone) svgElement('circle', { cx, cy, r: 2, fill: line.curve.color }, group);
  }
  // Crosshair in every chart, values in the one under the pointer.
  cross() {
    if (!this.overlay) return;
    this.overlay.replaceChildren();
    this.tip.hidden = true;
    if (!view.hover || !this.lines.length) return;
    const wanted = view.hover.x;
    if (wanted < this.x0 || wanted > this.x1) return;
    const first = this.lines[0], x = first.xs[nearest(first.xs, wanted)], active = view.hover.chart === this;
    const body = element('tbody');
    if (active && this.drag !== null && this.drag !== undefined) {
      const [a, b] = [this.toX(this.drag), this.toX(wanted)];
      svgElement('rect', { class: 'zoom', x: Math.min(a, b), width: Math.abs(b - a), y: this.top, height: this.bottom - this.top }, this.overlay);
    }
    svgElement('line', { class: 'cross', x1: this.toX(x), x2: this.toX(x), y1: this.top, y2: this.bottom }, this.overlay);
    for (const line of this.lines) {
      const i = nearest(line.xs, wanted), value = line.values[i];
      if (value !== null && Number.isFinite(this.toY(value)))
        svgElement('circle', { cx: this.toX(line.xs[i]), cy: this.toY(value), r: 3.6, fill: line.curve.color, stroke: 'var(--card)', 'stroke-width': 1.5 }, this.overlay);
      if (active) body.append(element('tr', {},
        element('td', { class: 'name' }, element('span', { class: 'dot', style: `background:${line.curve.color}` }), line.curve.name),
        element('td', {}, format(line.raw[i]) + (line.faint ? `  (${format(value)})` : '')),
        element('td', { class: 'soft' }, line.xs[i] === x ? '' : exactX(line.xs[i]))));
    }
    if (!active) return;
    this.tip.replaceChildren(element('div', { class: 'soft' }, exactX(x)), element('table', {}, body));
    this.tip.hidden = false;
    const plot = this.svg.getBoundingClientRect(), card = this.card.getBoundingClientRect();
    const at = plot.left - card.left + this.toX(x), wide = this.tip.offsetWidth;
    const left = at + 16 + wide > card.width ? at - 16 - wide : at + 16;
    this.tip.style.left = Math.max(4, Math.min(left, card.width - wide - 4)) + 'px';
    this.tip.style.top = (plot.top - card.top + 14) + 'px';
  }
}
function redraw() { charts.forEach(chart => chart.draw()); }
)js";

}  // namespace levin
