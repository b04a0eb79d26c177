"""Printing of tables on a terminal, or as text of fixed width in a log."""

from __future__ import annotations

from collections.abc import Sequence

import rich.box
import rich.console
import rich.table
from rich.text import Text

from cascades.evaluation.comparison import Comparison
from cascades.reporting import (
  chain_tables,
  decisions,
  escaping,
  findings,
  operating_point,
  summary,
)
from cascades.reporting.summary import SummaryTable

MOST_COMPARISONS = 20  # that are printed
LOG_WIDTH = 140  # characters, where the output is no terminal


def show(comparison: Comparison) -> None:
  """Prints the headline, findings in words, the main tables, and how many rows repeat inputs."""
  for task, size in comparison.sizes_with_repeats.items():
    line = f'Task {task}: {comparison.sizes[task]} of {size} rows have distinct inputs.'
    print(escaping.visible(line))
  headline = operating_point.headline(comparison)
  for sentence in (headline.sentence, headline.rule, *findings.sentences(comparison)):
    plain_console().print(Text(escaping.visible(sentence)))
  compared = decisions.table(comparison, most=MOST_COMPARISONS)
  seeds = [decisions.seed_averages(comparison)] if comparison.averages else []
  cheap = [summary.baselines(comparison)] if summary.baselines_by_task(comparison) else []
  chains = chain_tables.asked_for(comparison)
  print_tables(
    [summary.models(comparison), *seeds, *cheap, *([compared] if compared else []), *chains]
  )


def plain_console(width: int = LOG_WIDTH) -> rich.console.Console:
  """Console that prints texts as they are, in lines of `width` where the output is no terminal."""
  console = rich.console.Console(highlight=False, markup=False, emoji=False)
  if console.is_terminal:
    return console
  return rich.console.Console(
    width=width, no_color=True, highlight=False, markup=False, emoji=False
  )


def print_tables(tables: Sequence[SummaryTable]) -> None:
  """Prints tables; names and texts cannot act on the terminal."""
  console = plain_console()
  for table in tables:
    title = Text(escaping.visible(table.title))
    grid = rich.table.Table(title=title, title_justify='left', box=rich.box.SIMPLE)
    for name in table.header:
      grid.add_column(Text(escaping.visible(name)))
    for row in table.rows:
      grid.add_row(*(Text(escaping.visible(f'{cell.text} {cell.note}'.rstrip())) for cell in row))
    console.print(grid)
