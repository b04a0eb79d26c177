// Draws the charts of a page by Bokeh, and gives their texts the page's colors.
'use strict';
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const draw = async ({document: content, roots}) => {
  const elements = Object.entries(roots).map(([element, id]) => [id, element]);
  await Bokeh.embed.embed_items({report: content}, [
    {docid: 'report', roots: Object.fromEntries(elements), root_ids: elements.map(([id]) => id)},
  ]);
  const drawing = Bokeh.documents.at(-1);
  const models = [...new Set(drawing.roots().flatMap((root) => [...root.references()]))];
  const paint = () => {
    const style = getComputedStyle(document.documentElement);
    const [ink, soft] = ['--ink', '--soft'].map((name) => style.getPropertyValue(name).trim());
    for (const model of models) {
      if (model.type === 'LinearAxis') {
        model.setv({axis_label_text_color: ink, major_label_text_color: soft});
      }
      if (model.type === 'Span') model.line_color = ink;
      if (model.type === 'Scatter' && model.tags.includes('ink')) model.fill_color = ink;
    }
  };
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', paint);
  return {paint, named: (name) => models.filter((model) => model.name === name)};
};
const write = (name, text) => {  // as text, never as HTML
  for (const output of document.querySelectorAll(`[data-value="${name}"]`)) {
    if (output.textContent !== text) output.textContent = text;
  }
};
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const show = (page) => page().then(() => {
  document.documentElement.dataset.ready = 'yes';
}).catch((error) => {
  document.documentElement.classList.remove('scripted');  // the images stay
  throw error;
});
