"""Figure of how few answers of a new model are enough, from the results of `routing`."""

from __future__ import annotations

import json
import pathlib

FIGURE = pathlib.Path(__file__).parents[1] / 'docs' / 'routing_few.png'
LINES = {
  'ZeroRouter': 'gray', 'K-means': 'C1', 'K-means, shrunk': 'C0', 'LearnedMap, shrunk': 'C2',
  'planned prompts, factors': 'C3',
}  # fmt: skip


def draw(results: pathlib.Path, path: pathlib.Path = FIGURE) -> None:
  """Mean area against answers, a panel for each matrix; large marks where they are enough."""
  from matplotlib.figure import Figure

  details = json.loads(results.read_text())['details']
  own = [name for name in details if 'MiniLM' not in name]
  drawing = Figure(figsize=(10, 5.5), layout='constrained')
  panels = drawing.subplots(2, -(-len(own) // 2)).flat
  for axes, name in zip(panels, own, strict=False):
    study = details[name]['study']
    for router, color in LINES.items():
      area = {int(size): entry['mean'] for size, entry in study['area'][router].items()}
      axes.semilogx([*area], [*area.values()], '.-', color=color, label=router, linewidth=1)
      enough = study['enough'][router]
      axes.plot([enough], [area[enough]], 'o', color=color, markersize=8)
    axes.set_title(name, fontsize=10)
    axes.set_xticks(
      sizes := [*area], labels=['' if n == 400 else str(n) for n in sizes], fontsize=8
    )
    axes.minorticks_off()
  drawing.supxlabel('answers of each unseen model')
  drawing.supylabel('area, mean of 50 trials')
  drawing.legend(*axes.get_legend_handles_labels(), loc='outside upper center', ncols=len(LINES),
                 fontsize=8)  # fmt: skip
  drawing.savefig(path, dpi=110)
