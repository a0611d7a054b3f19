#include "trainer/report_page.h"

namespace levin {

const char* const report_script = R"js(
const runs = JSON.parse(document.getElementById('data').textContent).runs;
const page = document.getElementById('page');
const color = index => `var(--c${index % 8})`;
const several = runs.length > 1;

const duration = hours => {
  const seconds = Math.round(hours * 3600);
  if (seconds < 60) return seconds + 's';
  if (seconds < 3600) return Math.floor(seconds / 60) + 'm ' + seconds % 60 + 's';
  return Math.floor(seconds / 3600) + 'h ' + Math.floor(seconds / 60) % 60 + 'm';
};
const facts = [
  ['steps', s => s.steps.toLocaleString('en')],
  ['tokens', s => format(s.tokens)],
  ['loss', s => s.loss === null ? 'NaN' : s.loss.toFixed(4)],
  ['best validation loss', s => s.best_validation === null ? null : s.best_validation.toFixed(4)],
  ['tokens/s, median', s => format(s.tokens_per_second)],
  ['MFU, median', s => s.mfu ? (100 * s.mfu).toFixed(1) + '%' : null],
  ['peak memory', s => s.memory ? format(s.memory) + ' GiB' : null],
  ['time in steps', s => duration(s.hours)],
];

// "section.key" -> value, from the YAML levin writes.
function settings(text) {
  const result = new Map();
  let section = '';
  for (const line of text.split('\n')) {
    const top = /^([\w.]+):\s*$/.exec(line), key = /^\s+([\w.]+):\s*(.*)$/.exec(line);
    if (top) section = top[1]; else if (key) result.set(section + '.' + key[1], key[2]);
  }
  return result;
}

function header() {
  document.title = 'levin: ' + runs.map(run => run.name).join(', ');
  page.append(element('h1', {}, several ? `Comparison of ${runs.length} runs` : runs[0] ? runs[0].name : 'No runs'));
  if (!several && runs[0]) {
    const s = runs[0].summary;
    page.append(element('div', { class: 'soft' }, s.loss_steps > 1 ? `loss is the mean of the last ${s.loss_steps} steps` : ''),
      element('div', { class: 'tiles' }, ...facts.map(([name, value]) => [name, value(s)]).filter(f => f[1] !== null)
        .map(([name, value]) => element('div', { class: 'tile' }, element('b', {}, value), element('span', {}, name)))));
  }
  for (const run of runs) if (run.summary.bad)
    page.append(element('p', { class: 'bad' }, `${several ? run.name + ': ' : ''}the loss was no finite number at ${run.summary.bad} step${run.summary.bad > 1 ? 's' : ''} (red marks)`));
}

function comparison() {
  const used = facts.filter(([, value]) => runs.some(run => value(run.summary) !== null));
  page.append(element('section', { class: 'card scroll' }, element('table', { class: 'wide' },
    element('thead', {}, element('tr', {}, element('th', {}, 'run'), ...used.map(([name]) => element('th', {}, name)))),
    element('tbody', {}, ...runs.map((run, i) => element('tr', {},
      element('td', {}, element('span', { class: 'dot', style: `background:${color(i)}` }), run.name),
      ...used.map(([, value]) => element('td', {}, value(run.summary) ?? '–'))))))));
}

function choice(options, chosen, pick) {
  const buttons = options.map(([value, label]) => element('button', {
    type: 'button', 'aria-pressed': value === chosen,
    onclick: () => { buttons.forEach((b, i) => b.setAttribute('aria-pressed', options[i][0] === value)); pick(value); },
  }, label));
  return element('span', { class: 'choice' }, ...buttons);
}

function controls() {
  const longest = Math.max(0, ...runs.map(run => run.curves.loss.value.length));
  view.smooth = longest > 150 ? 0.9 : 0;
  const shown = element('output', {}, view.smooth.toFixed(2));
  const slider = element('input', {
    type: 'range', min: 0, max: 0.99, step: 0.01, value: view.smooth, 'aria-label': 'smoothing',
    oninput: event => { view.smooth = Number(event.target.value); shown.textContent = view.smooth.toFixed(2); redraw(); },
  });
  const box = (label, key) => element('label', {}, element('input', { type: 'checkbox', onchange: event => { view[key] = event.target.checked; redraw(); } }), label);
  page.append(element('div', { class: 'controls' },
    choice([['step', 'steps'], ['tokens', 'tokens'], ['hours', 'time']], 'step', axis => { view.axis = axis; view.range = null; redraw(); }),
    element('label', {}, 'smoothing', slider, shown), box('logarithmic', 'log'), box('cut outliers', 'clip'),
    element('span', {}, 'drag to zoom, double-click for all')));
  if (several) page.append(element('div', { class: 'runs' }, ...runs.map((run, i) => element('button', {
    type: 'button', 'aria-pressed': true, onclick: event => {
      if (view.hidden.has(i)) view.hidden.delete(i); else view.hidden.add(i);
      event.currentTarget.setAttribute('aria-pressed', !view.hidden.has(i));
      redraw();
    },
  }, element('span', { class: 'dot', style: `background:${color(i)}` }), run.name))), element('p', {}));
}

function drawAll() {
  const curve = (key, extra = {}) => runs.map((run, i) => ({ name: run.name, color: color(i), run: i, data: run.curves[key], ...extra }));
  const loss = runs.flatMap((run, i) => [
    { name: several ? run.name : 'training', color: color(i), run: i, data: run.curves.loss },
    { name: several ? run.name + ', validation' : 'validation', color: color(several ? i : 1), run: i, data: run.curves.validation_loss, dots: true },
  ]);
  const any = key => runs.some(run => run.curves[key].value.some(value => value > 0));
  const list = [
    new Chart('Loss', 'nats per token', loss, { wide: true, canLog: true }),
    new Chart('Learning rate', '', curve('learning_rate', { exact: true }), { zero: true }),
    new Chart('Gradient norm', 'before clipping', curve('grad_norm'), { canLog: true }),
    new Chart('Throughput', 'tokens per second', curve('tokens_per_second'), { zero: true }),
    any('mfu') ? new Chart('MFU', 'percent of peak', curve('mfu'), { zero: true })
      : new Chart('Waiting for data', 'ms per step', curve('data_wait_ms'), { zero: true }),
  ];
  if (any('exposed_comm_ms'))
    list.push(new Chart('Exposed communication', 'ms per step', curve('exposed_comm_ms'), { zero: true }));
  page.append(element('div', { class: 'charts' }, ...list.map(chart => chart.card)));
}

function configuration() {
  const maps = runs.map(run => settings(run.config));
  if (several) {
    const keys = [...new Set(maps.flatMap(map => [...map.keys()]))];
    const different = keys.filter(key => new Set(maps.map(map => map.get(key))).size > 1);
    if (different.length) page.append(element('section', { class: 'card scroll' }, element('h2', {}, 'Settings that differ'),
      element('table', { class: 'wide' },
        element('thead', {}, element('tr', {}, element('th', {}, 'key'), ...runs.map(run => element('th', {}, run.name)))),
        element('tbody', {}, ...different.map(key => element('tr', {}, element('td', {}, key), ...maps.map(map => element('td', {}, map.get(key) ?? '–'))))))));
  }
  runs.forEach(run => {
    if (run.config) page.append(element('section', { class: 'card' }, element('details', several ? {} : { open: '' },
      element('summary', {}, several ? 'Configuration of ' + run.name : 'Configuration'), element('pre', {}, run.config))));
  });
}

header();
if (several) comparison();
if (runs.length) { controls(); drawAll(); configuration(); redraw(); }
let pending = 0;
addEventListener('resize', () => { cancelAnimationFrame(pending); pending = requestAnimationFrame(redraw); });
)js";

}  // namespace levin
