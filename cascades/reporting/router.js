// Moves the price of cost of a router's report. Bokeh draws; texts go into the page as text.
show(async () => {
  const data = read('report-data'), values = data.values;
  const {paint, named} = await draw(data);
  const slider = document.getElementById('price');
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
  move();
  paint();
});
