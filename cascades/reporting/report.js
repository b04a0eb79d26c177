// Moves the threshold of a report. Bokeh draws; texts go into the page as text, never as HTML.
show(async () => {
  const data = read('report-data'), {curves: values, start} = data;
  const {paint, named} = await draw(data);
  const slider = document.getElementById('threshold');
  const select = {
    model: document.getElementById('choose-model'), score: document.getElementById('choose-score'),
  };
  const chosen = () => values.curves[select.model.value][select.score.value];

  const fill = (name, columns) => {
    for (const source of named(name)) {
      source.data = Object.fromEntries(Object.keys(source.data).map((key) => [
        key, columns[key].map((value) => value ?? NaN),
      ]));
    }
  };
  const pick = (columns, indices) => Object.fromEntries(
    ['x', 'rate', 'quality'].map((key) => [key, indices.map((index) => columns[key][index])]),
  );
  const nearest = (column, value) => {
    let best = 0;
    column.forEach((item, index) => {
      if (Math.abs(item - value) < Math.abs(column[best] - value)) best = index;
    });
    return best;
  };
  const quality = (value) => value === null ? '–' : value.toFixed(values.digits);
  const amount = (value) => {
    const power = Math.min(4, Math.max(0, Math.floor(Math.log10(Math.abs(value) || 1) / 3)));
    return `${Number((value / 1000 ** power).toPrecision(4))} ${['', 'k', 'M', 'G', 'T'][power]}`.trim();
  };

  // The last point of a task that the shared threshold reaches: thresholds fall, from infinity.
  const reached = (columns, threshold) => {
    if (threshold === null) return 0;
    let last = 0;
    columns.threshold.forEach((value, index) => { if (value !== null && value >= threshold) last = index; });
    return last;
  };

  let moving = false;
  const move = (from) => {
    const columns = chosen(), index = Number(slider.value);
    const at = Object.fromEntries(Object.entries(columns).map(([key, column]) => [key, column[index]]));
    const threshold = at.threshold === null ? 'none' : String(Number(at.threshold.toPrecision(4)));
    write('rate', percent(at.rate));
    write('quality', quality(at.quality));
    write('band', `[${quality(at.low)}, ${quality(at.high)}]`);
    write('retained', percent(at.quality / values.large_quality));
    write('cost', at.x.toFixed(2));
    write('flops', amount(at.cost));
    write('threshold', threshold);
    write('promise', at.promise ?? '');
    slider.setAttribute('aria-valuetext', `threshold ${threshold}: ${percent(at.rate)} deferred, ` +
      `quality ${quality(at.quality)}, cost ${at.x.toFixed(2)} of the large model`);
    moving = true;
    if (from !== 'line') for (const line of named('threshold line')) line.location = at.x;
    for (const line of named('rate line')) line.location = at.rate;
    for (const line of named('share line')) {
      line.visible = at.threshold !== null;
      line.location = at.threshold ?? 0;
    }
    fill('point', {x: [at.x], quality: [at.quality]});
    values.tasks.forEach((tasks, task) => {
      const own = tasks[select.model.value], point = reached(own, at.threshold);
      const shown = select.score.value === '0';
      for (const line of named(`task line ${task}`)) {
        line.visible = shown;
        line.location = own.rate[point];
      }
      write(`task ${task}`, shown ? `${percent(own.rate[point])} deferred, ${quality(own.quality[point])}` : '');
    });
    moving = false;
  };

  const choose = (rate) => {
    const columns = chosen(), score = select.score.value, last = columns.x.length - 1;
    const color = values.colors[select.model.value];
    values.curves.forEach((scores, index) => {
      fill(`curve ${index}`, scores[score]);
      fill(`ends ${index}`, pick(scores[score], [0, scores[score].x.length - 1]));
      fill(`alone ${index}`, pick(scores[score], [0]));
    });
    fill('large', {x: [1], quality: [values.large_quality]});
    fill('chosen', {...columns, zero: columns.x.map(() => 0)});
    const ones = columns.x.map(() => 1);
    fill('shares', {...columns, zero: columns.x.map(() => 0), one: ones});
    const ends = [0.995, 0.005].map((share) => columns.threshold[Math.max(1, nearest(columns.rate, share))]);
    for (const range of named('threshold range')) range.setv({start: ends[0], end: ends[1]});
    for (const name of ['band', 'point glyph']) {
      for (const glyph of named(name)) glyph.fill_color = color;
    }
    slider.max = last;
    slider.value = nearest(columns.rate, rate);
    move();
  };

  values.tasks.forEach((tasks, task) => tasks.forEach((columns, model) => {
    fill(`task ${task} curve ${model}`, columns);
    fill(`task ${task} ends ${model}`, pick(columns, [0, columns.x.length - 1]));
  }));
  slider.addEventListener('input', () => move());
  for (const control of Object.values(select)) {
    control.addEventListener('change', () => choose(chosen().rate[slider.value] ?? 0));
  }
  for (const line of named('threshold line')) {
    line.properties.location.change.connect(() => {
      if (moving) return;
      slider.value = nearest(chosen().x, line.location);
      move('line');
    });
  }
  select.model.value = start.model;
  select.score.value = 0;
  choose(start.rate);
  paint();
});
