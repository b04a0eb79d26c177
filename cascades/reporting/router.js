// Moves the price of cost of a router's report. Bokeh draws; texts go into the page as text.
'use strict';
(async () => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const {document: content, roots, values} = read('report-data');
  const elements = Object.entries(roots).map(([element, id]) => [id, element]);
  await Bokeh.embed.embed_items({report: content}, [
    {docid: 'report', roots: Object.fromEntries(elements), root_ids: elements.map(([id]) => id)},
  ]);
  const drawing = Bokeh.documents.at(-1);
  const models = [...new Set(drawing.roots().flatMap((root) => [...root.references()]))];
  const named = (name) => models.filter((model) => model.name === name);
  const slider = document.getElementById('price');
  const write = (name, text) => {
    for (const output of document.querySelectorAll(`[data-value="${name}"]`)) {
      if (output.textContent !== text) output.textContent = text;
    }
  };
  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  const short = (value) => String(Number(value.toPrecision(3)));

  let moving = false;
  const move = (from) => {
    const index = Number(slider.value);
    const gain = values.quality[index] - values.control[index];
    write('lambda', short(values.price[index]));
    write('share', percent(values.x[index]));
    write('cost', short(values.cost[index]));
    write('quality', values.quality[index].toFixed(4));
    write('gain', `${gain < 0 ? '−' : '+'}${Math.abs(gain).toFixed(4)}`);
    values.shares[index].forEach((share, model) => write(`model ${model}`, percent(share)));
    values.choices[index].forEach((model, cluster) => {
      for (const dot of document.querySelectorAll(`[data-cluster="${cluster}"]`)) {
        if (model >= 0) dot.style.background = values.colors[model];
      }
    });
    slider.setAttribute('aria-valuetext', `price ${short(values.price[index])}: cost ` +
      `${percent(values.x[index])} of the dearest model, quality ${values.quality[index].toFixed(4)}`);
    moving = true;
    if (from !== 'line') for (const line of named('price line')) line.location = values.x[index];
    for (const line of named('share line')) line.location = values.x[index];
    for (const source of named('point')) {
      source.data = {...source.data, x: [values.x[index]], y: [values.quality[index]]};
    }
    for (const source of named('prompts')) {
      const shade = values.routes.map((route) => {
        let last = route.length - 2;  // pairs of the first point and the model from there on
        while (route[last] > index) last -= 2;
        return values.colors[route[last + 1]];
      });
      source.data = {...source.data, shade};
    }
    moving = false;
  };
  const paint = () => {
    const style = getComputedStyle(document.documentElement);
    const [ink, soft] = ['--ink', '--soft'].map((name) => style.getPropertyValue(name).trim());
    for (const model of models) {
      if (model.type === 'LinearAxis') {
        model.setv({axis_label_text_color: ink, major_label_text_color: soft});
      }
      if (model.type === 'Span') model.line_color = ink;
    }
  };

  slider.max = values.x.length - 1;
  slider.value = values.start;
  slider.addEventListener('input', () => move());
  for (const line of named('price line')) {
    line.properties.location.change.connect(() => {
      if (moving) return;
      let best = 0;
      values.x.forEach((x, index) => {
        if (Math.abs(x - line.location) < Math.abs(values.x[best] - line.location)) best = index;
      });
      slider.value = best;
      move('line');
    });
  }
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', paint);
  move();
  paint();
  document.documentElement.dataset.ready = 'yes';
})().catch((error) => {
  document.documentElement.classList.remove('scripted');  // the images stay
  throw error;
});
