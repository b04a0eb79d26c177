// Changes the cost that quality is shown against.
show(async () => {
  const data = read('report-data');
  const {paint, named} = await draw(data);
  const select = document.getElementById('choose-cost');
  const choose = () => {
    const index = Number(select.value);
    for (const source of named('points')) {
      source.data = {...source.data, x: source.data[`cost ${index}`]};
    }
    for (const axis of named('cost axis')) axis.axis_label = data.costs[index];
  };
  select.addEventListener('change', choose);
  select.value = 0;
  choose();
  paint();
});
