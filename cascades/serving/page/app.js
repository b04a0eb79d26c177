// The page of a server: asks, shows who answered, and draws what the status says.
'use strict';

const POLL = 2000, WINDOW = 50, MOST = 500;
const LEVELS = [[0, 'below 50 %'], [0.5, '50 to 80 %'], [0.8, '80 to 95 %'], [0.95, 'above 95 %']];
const byId = (id) => document.getElementById(id);
const show = (id, text) => { byId(id).textContent = text; };

const number = (value) => value === 0 ? '0' : String(Number(value.toPrecision(3)));
const percent = (value) => `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`;
const seconds = (value) => value < 1 ? `${number(1000 * value)} ms` : `${number(value)} s`;
const dollars = (value) => `$${value !== 0 && value < 1e-4 ? value.toExponential(1) : number(value)}`;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

let state = null, points = [], running = null, chosen = null, first = true, waiting = ['unknown'];

// ---- asking

function headers() {
  const key = byId('key').value.trim();
  return {'Content-Type': 'application/json', ...(key ? {Authorization: `Bearer ${key}`} : {})};
}

function fail(message, status) {
  const box = byId('error');
  box.hidden = !message;
  box.textContent = message;
  if (status === 401) {
    byId('options').open = true;
    byId('key').focus();
  }
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  const error = new Error(body.error?.message ?? `The server says ${response.status}.`);
  error.status = response.status;
  return error;
}

// Data of server-sent events, one JSON value each.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = '';
  for (;;) {
    const {done, value} = await reader.read();
    buffer += value ?? '';
    const lines = buffer.split(/\r\n|\n|\r/);
    buffer = done ? '' : lines.pop();
    for (const line of lines) {
      const data = line.startsWith('data:') ? line.slice(5).trim() : '';
      if (data && data !== '[DONE]') yield JSON.parse(data);
    }
    if (done) return;
  }
}

async function ask() {
  const text = byId('prompt').value.trim();
  if (!text) return;
  const content = byId('spell').checked ? [...text.replace(/\s+/g, '').toLowerCase()].join(' ') : text;
  running?.abort();
  const request = running = new AbortController();
  const answer = {text: '', tokens: [], cascade: null, finish: null};
  busy(true);
  fail('');
  render(answer);
  try {
    if (!state) await poll();  // for the name of the cascade
    const most = byId('most').valueAsNumber;
    const response = await fetch('v1/chat/completions', {
      method: 'POST', headers: headers(), signal: request.signal,
      body: JSON.stringify({
        model: byId('model').value, messages: [{role: 'user', content}], temperature: 0, stream: true,
        logprobs: true, top_logprobs: 3, ...(most ? {max_tokens: most} : {}),
      }),
    });
    if (!response.ok) throw await refusal(response);
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      if (event.cascade?.replaced) Object.assign(answer, {text: '', tokens: []});
      const choice = event.choices?.[0];
      answer.text += choice?.delta?.content ?? '';
      answer.tokens.push(...(choice?.logprobs?.content ?? []));
      answer.finish = choice?.finish_reason ?? answer.finish;
      answer.refusal = choice?.delta?.refusal ?? answer.refusal;
      if (event.cascade && !event.cascade.replaced) answer.cascade = event.cascade;
      render(answer);
    }
  } catch (error) {
    if (error.name !== 'AbortError') fail(error.message, error.status);
    byId('result').hidden = !answer.text;
  }
  if (running === request) busy(false);
  poll();
}

function busy(is) {
  if (!is) running = null;
  byId('stop').hidden = !is;
  byId('result').setAttribute('aria-busy', String(is));
}

function level(probability) {
  return LEVELS.filter(([least]) => probability >= least).length - 1;
}

function render(answer) {
  const {cascade} = answer, box = byId('answer');
  byId('result').hidden = false;
  byId('author').className = side(cascade?.author ?? null) ?? '';
  show('author', cascade ? verdict(cascade, answer) : 'Thinking…');
  if (byId('author').textContent === 'Thinking…' && answer.text) show('author', 'Answering…');
  box.replaceChildren(...(colored(answer) ?? [answer.text]));
  byId('legend').hidden = !answer.tokens.length;
  byId('tokens').hidden = !answer.tokens.length;
  byId('tokens').querySelector('tbody').replaceChildren(...answer.tokens.map(tokenRow));
  facts(cascade, answer);
  show('spoken', cascade ? `${byId('author').textContent}. ${answer.text}` : '');
}

// Tokens in the text, and the spaces between them; null where they are not those of the text.
function colored({text, tokens}) {
  const nodes = [];
  let at = 0;
  for (const group of characters(tokens)) {
    const spaces = /^\s*/.exec(text.slice(at))[0];
    let shown = group.text;
    if (!text.startsWith(shown, at)) {
      shown = shown.trimStart();
      if (!text.startsWith(shown, at + spaces.length)) return null;
      nodes.push(spaces);
      at += spaces.length;
    }
    at += shown.length;
    if (shown) nodes.push(tokenNode(shown, Math.exp(group.logprob)));
  }
  return text.slice(at).trim() ? null : nodes;
}

// Texts of tokens. Those that only together are a character are one text, of their least probability.
function characters(tokens) {
  const groups = [];
  let bytes = [], logprob = 0;
  for (const token of tokens) {
    bytes = [...bytes, ...(token.bytes ?? new TextEncoder().encode(token.token))];
    logprob = Math.min(logprob, token.logprob);
    try {
      groups.push({text: new TextDecoder('utf-8', {fatal: true}).decode(new Uint8Array(bytes)), logprob});
    } catch {
      continue;  // the next token has the rest of the character
    }
    [bytes, logprob] = [[], 0];
  }
  return groups;
}

function tokenNode(text, probability) {
  const node = document.createElement('span');
  node.className = `token c${level(probability)}`;
  node.textContent = text;
  node.title = `${percent(probability)}, ${LEVELS[level(probability)][1]}`;
  return node;
}

function tokenRow(token) {
  const row = document.createElement('tr');
  const cell = (text, isCode) => {
    const data = row.insertCell();
    const node = isCode ? document.createElement('code') : data;
    node.textContent = text;
    if (isCode) data.append(node);
  };
  cell(token.token, true);
  const share = ({logprob}) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;
  cell(share(token));
  const others = (token.top_logprobs ?? []).filter((other) => other.token !== token.token);
  cell(others.map((other) => `${other.token || 'the end'} ${share(other)}`).join(', ') || '–');
  return row;
}

// Roles of the models in order; of the server, or of those that a response names.
const roles = () => Object.keys(state?.models ?? {small: '', large: ''});

// Side of a model: 'small' is the first one, 'large' any other.
const side = (role) => role === null ? null : role === roles()[0] ? 'small' : 'large';

function verdict(cascade, answer) {
  if (!cascade.author) return answer.refusal ?? 'Nobody answered.';
  const name = cascade.models.filter((model) => model.role === cascade.author).at(-1)?.model;
  const why = cascade.flag ? ` (${cascade.flag})` : '';
  const mark = side(cascade.author) === 'small' ? '●' : '▲';
  return `${mark} The ${cascade.author} model answered${name && name !== cascade.author ? `: ${name}` : ''}${why}`;
}

// A decision in words.
function decided({role, score, threshold, deferred, bound}) {
  const limit = threshold === null ? 'never deferred' : `deferred from ${number(threshold)}`;
  const name = roles().length > 2 ? `${role}: ` : '';
  return `${name}${bound ? 'at least ' : ''}${number(score)}, ${limit}${name ? (deferred ? ', deferred' : ', accepted') : ''}`;
}

function facts(cascade, answer) {
  const list = byId('facts');
  list.replaceChildren();
  if (!cascade) return;
  const add = (name, value) => {
    if (value === null || value === undefined) return;
    const group = document.createElement('div'), term = document.createElement('dt');
    const data = document.createElement('dd');
    term.textContent = name;
    data.textContent = value;
    group.append(term, data);
    list.append(group);
  };
  const total = (key) => cascade.models.reduce((sum, model) => sum + model[key], 0);
  const {router} = cascade;
  if (router) add('Router', `${router.model ?? 'nobody'}, predicted loss ${number(router.predicted_loss)}, drift ${number(router.drift)}`);
  for (const decision of cascade.levels) add('Score', decided(decision));
  if (cascade.audit) add('Audit', 'all models answered, for the log');
  add('Time', cascade.models.map((model) => `${model.role} ${seconds(model.seconds)}`).join(', '));
  add('Cost', cascade.dollars === null ? null : dollars(cascade.dollars));
  add('Tokens', `${total('prompt_tokens')} read, ${total('generated_tokens')} written`);
  add('Discarded tokens', cascade.discarded_tokens || null);
  add('End', answer.finish === 'length' ? 'cut off at the longest answer' : null);
}

// ---- live charts

async function poll() {
  try {
    const since = points.length ? points[points.length - 1].number : 0;
    const response = await fetch(`v1/cascade/status?since=${since}`, {headers: headers()});
    if (!response.ok) throw await refusal(response);
    const next = await response.json();
    if (waiting.length) await prepare();
    if (next.total < since) {  // the server was restarted
      points = [];
      return poll();
    }
    const last = points.at(-1)?.number ?? 0;  // of another answer, perhaps, that came in between
    const recent = next.recent.filter((point) => point.number > last).map((point) => sided(point, next));
    points = [...points, ...recent].slice(-MOST);
    const changed = first || recent.length > 0;
    state = next;
    describe();
    if (changed) draw();
    first = false;
  } catch (error) {
    alerts([error.status === 401 ? 'The server asks for a key: see the options.' : 'The server does not answer.']);
  }
}

// A point with two sides: the first model, and all others together. Scores are those of the first.
function sided(point, {models}) {
  const [first] = Object.keys(models);
  const {[first]: small = null, ...others} = point.sides;
  const rest = Object.values(others);
  const sum = (key) => rest.some((each) => each[key] === null) ? null : rest.reduce((total, each) => total + each[key], 0);
  const large = rest.length ? Object.fromEntries(Object.keys(rest[0]).map((key) => [key, sum(key)])) : null;
  const author = point.author === null ? null : point.author === first ? 'small' : 'large';
  return {...point, small, large, author, score: point.decided === first ? point.score : null};
}

// Reasons why the server is not ready; it is asked until it is.
async function prepare() {
  const {ready, reasons} = await (await fetch('readyz')).json();
  waiting = ready ? [] : reasons;
}

function describe() {
  const {models, levels} = state, all = Object.values(models);
  const deciders = [...new Set(levels.map((each) => each.decider).filter(Boolean))];
  const by = [...(state.routed ? ['a router'] : []), ...deciders].join(' and ');
  show('models', all.join(' → ') + (by && all.length > 1 ? `, decided by ${by}` : ''));
  if (all.length > 2) {
    show('small-legend', roles()[0]);
    show('large-legend', 'a later model');
  }
  const names = [state.name ?? 'cascade', ...all];
  const select = byId('model');
  const cascade = state.name ?? 'cascade';
  if (select.options.length !== names.length) {
    select.replaceChildren(...names.map((name, index) => new Option(index ? `${name}, whatever the policy says` : 'the cascade', index ? name : cascade)));
  }
  const open = Object.entries(state.breakers).filter(([, is]) => is !== 'closed');
  const remarks = new Set([state.log, ...Object.values(state.notes ?? {})]);  // the log is in both
  alerts([
    ...state.drift.map(({role, task, monitor}) => `Drift of ${monitor} of ${role} in ${task}: requests are not like those of the calibration.`),
    ...open.map(([role, is]) => `The ${role} model is left alone after failures (${is}).`),
    ...waiting.map((reason) => `Not ready yet: ${reason}`),
    ...[...remarks].filter(Boolean),
  ]);
}

function alerts(texts) {
  const list = byId('alerts'), before = [...list.children].map((item) => item.textContent);
  if (before.join('\n') === texts.join('\n')) return;
  list.replaceChildren(...texts.map((text) => Object.assign(document.createElement('li'), {textContent: text})));
}

const rolling = (values, summary) => values.map((_, end) => summary(values.slice(Math.max(0, end + 1 - WINDOW), end + 1)));

// Dollars where all models have prices, else tokens: of a side, or null if it was not asked.
function unit() {
  const sides = points.flatMap((point) => [point.small, point.large]).filter(Boolean);
  const priced = sides.length > 0 && sides.every((side) => side.dollars !== null) && sides.some((side) => side.dollars > 0);
  return priced ? {name: 'Cost of 1,000 requests', of: (side) => 1000 * side.dollars, format: dollars}
    : {name: 'Tokens a request', of: (side) => side.tokens, format: number};
}

function draw() {
  const decided = points.filter((point) => point.score !== null), count = points.length;
  show('span', count ? `the last ${count} of ${state.total} requests, means of ${Math.min(WINDOW, count)}` : 'no requests yet');
  const rates = rolling(decided.map((point) => Number(point.deferred)), mean);
  const rate = rates.at(-1) ?? null;
  show('rate', rate === null ? '–' : percent(rate));
  lineChart(byId('rate-chart'), {
    label: rate === null ? 'No decision yet' : `Share deferred of the last ${Math.min(WINDOW, decided.length)} decisions: ${percent(rate)}`,
    values: rates, high: 1, format: percent, caption: 'requests →',
    marks: decided.map((point) => ({value: point.deferred ? 0.96 : 0.04, author: point.author})),
  });
  const {name, of, format} = unit();
  const paid = points.map((point) => [point.small, point.large].filter(Boolean).reduce((sum, side) => sum + of(side), 0));
  const costs = rolling(paid, mean), cost = costs.at(-1) ?? null;
  show('cost-name', name);
  show('cost', cost === null ? '–' : format(cost));
  lineChart(byId('cost-chart'), {
    label: cost === null ? 'No cost yet' : `${name}, mean: ${format(cost)}`,
    values: costs, high: ceiling(Math.max(0, ...paid)), format, caption: 'requests →',
    marks: points.map((point, index) => ({value: paid[index], author: point.author})),
  });
  const times = points.map((point) => point.seconds), medians = rolling(times, median), time = medians.at(-1) ?? null;
  const high = ceiling(Math.max(1e-3, [...times].sort((a, b) => a - b)[Math.floor(0.98 * (times.length - 1))] ?? 0));
  show('time', time === null ? '–' : seconds(time));
  lineChart(byId('time-chart'), {
    label: time === null ? 'No time yet' : `Median time of a request: ${seconds(time)}`,
    values: medians.map((value) => Math.min(value, high)), high, format: seconds, caption: 'requests →',
    marks: points.map((point) => ({value: point.seconds, author: point.author})),
  });
  tasks();
  whatIf();
}

// ---- what if

function tasks() {
  const names = [...new Set(points.filter((point) => point.score !== null).map((point) => point.task))].sort();
  const select = byId('task');
  if ([...select.options].map((option) => option.value).join('\n') !== names.join('\n')) {
    const before = select.value;
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(before)) select.value = before;
  }
  byId('task-row').hidden = names.length < 2;
}

// The slider counts the distinct scores below the threshold: 0 defers all, the last defers none.
function whatIf() {
  const scored = points.filter((point) => point.score !== null && point.task === byId('task').value);
  const steps = [...new Set(scored.map((point) => point.score))].sort((a, b) => a - b);
  const slider = byId('slider'), policy = scored.at(-1)?.threshold ?? null;
  slider.disabled = byId('reset').disabled = !scored.length;
  if (!scored.length) return;
  slider.max = steps.length;
  const position = (threshold) => threshold === null ? steps.length : steps.filter((score) => score < threshold).length;
  const threshold = chosen === null ? policy : chosen;
  slider.value = position(threshold === Infinity ? null : threshold);
  const shown = threshold === null || threshold === Infinity ? 'none deferred' : number(threshold);
  show('threshold', shown + (chosen === null ? ' (the policy)' : ''));
  const limit = threshold === null ? Infinity : threshold;
  const defers = scored.map((point) => point.score >= limit || (point.is_bound && point.deferred));
  const {name, of, format} = unit();
  const estimate = (value, format) => `${format(value.mean)}${value.estimated ? ' (estimated)' : ''}`;
  show('was-rate', percent(mean(scored.map((point) => Number(point.deferred)))));
  show('if-rate', percent(mean(defers.map(Number))));
  show('what-cost', name.toLowerCase());
  const was = scored.map((point) => point.deferred);
  const rows = [['cost', of, format], ['time', (side) => side.seconds, seconds]];
  for (const [id, amount, write] of rows) {
    show(`was-${id}`, estimate(total(scored, was, amount), write));
    show(`if-${id}`, estimate(total(scored, defers, amount), write));
  }
  slider.setAttribute('aria-valuetext', `threshold ${shown}, ${percent(mean(defers.map(Number)))} deferred`);
  const bounds = scored.filter((point) => point.is_bound).length, asked = scored.filter((point) => point.large).length;
  show('what-note', [
    `${scored.length} requests; the large model was asked in ${asked}, and its mean stands for the others.`,
    bounds ? `${bounds} small answers were stopped early, so that their scores are not known: they count as deferred.` : '',
  ].join(' '));
  histogram(byId('scores'), {
    label: `Histogram of ${scored.length} scores from ${number(steps[0])} to ${number(steps.at(-1))}; threshold ${shown}`,
    scores: scored.map((point) => point.score).sort((a, b) => a - b), threshold, policy, format: number,
  });
}

// Mean of an amount if these requests are deferred. A model that was not asked has its mean.
function total(scored, defers, amount) {
  const average = (role) => {
    const sides = scored.map((point) => point[role]).filter(Boolean);
    return sides.length ? mean(sides.map(amount)) : 0;
  };
  const means = {small: average('small'), large: average('large')};
  const routed = scored.every((point) => !(point.small && point.large));  // decided before any answer
  let estimated = false;
  const values = scored.map((point, index) => {
    const roles = defers[index] ? (routed ? ['large'] : ['small', 'large']) : ['small'];
    return roles.reduce((sum, role) => {
      estimated ||= !point[role];
      return sum + (point[role] ? amount(point[role]) : means[role]);
    }, 0);
  });
  return {mean: mean(values), estimated};
}

function slide() {
  const scored = points.filter((point) => point.score !== null && point.task === byId('task').value);
  const steps = [...new Set(scored.map((point) => point.score))].sort((a, b) => a - b);
  chosen = steps[byId('slider').valueAsNumber] ?? Infinity;
  whatIf();
}

// ---- start

byId('legend').replaceChildren(...LEVELS.map(([, text], index) => {
  const item = document.createElement('li'), sample = document.createElement('span');
  sample.className = `token c${index}`;
  sample.textContent = text;
  item.append(sample);
  return item;
}));
byId('form').addEventListener('submit', (event) => { event.preventDefault(); ask(); });
byId('prompt').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); byId('form').requestSubmit(); }
});
byId('stop').addEventListener('click', () => running?.abort());
byId('slider').addEventListener('input', slide);
byId('task').addEventListener('change', () => { chosen = null; whatIf(); });
byId('reset').addEventListener('click', () => { chosen = null; whatIf(); });
byId('key').addEventListener('change', poll);
const query = new URLSearchParams(location.search);
byId('spell').checked = query.has('spell');
byId('prompt').value = query.get('prompt') ?? '';
byId('prompt').focus();
draw0();
setInterval(() => { if (!document.hidden) poll(); }, POLL);
addEventListener('resize', () => { if (state) draw(); });
document.addEventListener('visibilitychange', () => { if (!document.hidden) poll(); });

function draw0() {
  for (const id of ['rate-chart', 'cost-chart', 'time-chart']) lineChart(byId(id), {label: 'No requests yet', values: [], high: 1, format: number, caption: ''});
  histogram(byId('scores'), {label: 'No scores yet', scores: [], threshold: null, format: number});
  poll();
}
