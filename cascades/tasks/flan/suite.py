"""FLAN2021's tasks by name, their mixture, and the subsets that the CAT paper evaluates.

Wei et al. 2022, https://arxiv.org/abs/2109.01652. 69 tasks in 17 clusters; row i of a slice is
worded by template i mod 10.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping

from cascades.tasks.flan import (
  common_sense,
  coreference,
  entailment,
  open_domain_qa,
  others,
  paraphrase,
  reading_comprehension,
  sentiment,
  structure_to_text,
  summarization,
  text_formatting,
  translation,
  wording,
)
from cascades.tasks.flan.definition import FlanTask, PromptFields
from cascades.tasks.flan.wording import Template
from cascades.tasks.sources import DatasetSource, Sources
from cascades.tasks.task import Mixture, Row, Task

MIXTURE = 'flan2021'
LARGEST_RATE = 3000
ROWS_JUDGED = 200  # of the validation slice, before repeated prompts are dropped
PAPER_SPLIT = 'paper'

CLUSTERS: Mapping[str, tuple[FlanTask, ...]] = {
  'summarization': summarization.TASKS,
  'structure to text': structure_to_text.TASKS,
  'reading comprehension': reading_comprehension.TASKS,
  'open-domain QA': open_domain_qa.TASKS,
  'paraphrase': paraphrase.TASKS,
  'sentiment': sentiment.TASKS,
  'text formatting': text_formatting.TASKS,
  'common sense': common_sense.TASKS,
  'translation': translation.TASKS,
  'coreference': coreference.TASKS,
  'entailment': entailment.TASKS,
  'others': others.TASKS,
}
DEFINITIONS: Mapping[str, FlanTask] = {
  f'flan_{definition.name}': definition for tasks in CLUSTERS.values() for definition in tasks
}

# Rows that the CAT paper evaluates, by the captions of Wang et al. 2024,
# https://arxiv.org/abs/2406.00060.
PAPER_ACCURACY: Mapping[str, int] = {
  f'flan_{name}': 200
  for name in (
    'ag_news_subset', 'anli_r1', 'anli_r2', 'anli_r3', 'arc_challenge', 'bool_q', 'cola',
    'cosmos_qa', 'definite_pronoun_resolution', 'glue_mrpc', 'glue_qqp', 'hellaswag',
    'imdb_reviews', 'math_dataset', 'mnli_matched', 'mnli_mismatched', 'openbookqa', 'paws_wiki',
    'qnli', 'rte', 'sentiment140', 'sst2', 'story_cloze', 'trec', 'wic', 'yelp_polarity_reviews',
  )
} | {
  'flan_arc_easy': 180, 'flan_snli': 160, 'flan_piqa': 80, 'flan_cb': 40, 'flan_copa': 40,
  'flan_wsc': 40,
}  # fmt: skip
# Named among the accuracy tasks, without a size: the four losses hardly differ on them.
PAPER_NOT_PLOTTED: Mapping[str, int] = {
  f'flan_{name}': 200
  for name in (
    'coqa', 'drop', 'natural_questions', 'samsum', 'squad_v1', 'squad_v2', 'trivia_qa',
  )
}  # fmt: skip
PAPER_BLEU: Mapping[str, int] = {
  'flan_para_crawl_enes': 162,
  'flan_wmt14_enfr': 181,
  **{f'flan_wmt16_translate_{xx}en': 181 for xx in ('cs', 'de', 'fi', 'ro', 'ru', 'tr')},
}
PAPER: Mapping[str, int] = {**PAPER_ACCURACY, **PAPER_NOT_PLOTTED, **PAPER_BLEU}

SUITES: Mapping[str, tuple[str, ...]] = {
  MIXTURE: tuple(DEFINITIONS),
  'flan2021_accuracy': (*PAPER_ACCURACY, *PAPER_NOT_PLOTTED),
  'flan2021_accuracy_plotted': tuple(PAPER_ACCURACY),
  'flan2021_bleu': tuple(PAPER_BLEU),
}


def task(
  name: str,
  sources: Sources | None = None,
  *,
  answerable_only: bool = False,
  list_options: bool = True,
  paper_rows: Mapping[str, int] = PAPER,
) -> Task:
  """Makes the task `name`, with splits train, validation and test.

  Tasks that the CAT paper evaluates have a split `paper` as well: the first `paper_rows` of the
  validation slice. Translations first lose rows with a repeated prompt, which gives the paper's
  sizes.

  Args:
    name: a key of DEFINITIONS, such as 'flan_rte'.
    sources: where to look for data sets.
    answerable_only: leave out templates whose prompt does not determine the answer.
    list_options: list the options in the prompts; False for rank classification.
    paper_rows: rows of the split `paper` by task.
  """
  definition = DEFINITIONS[name]
  templates = [
    t for t in wording.templates(definition.group) if t.answerable or not answerable_only
  ]
  slices = {s: getattr(definition, s) for s in ('train', 'validation', 'test')}
  if name in paper_rows:
    slices[PAPER_SPLIT] = definition.validation
  origin = DatasetSource(definition.dataset, slices, sources or Sources())
  settings = hashlib.sha256(
    repr((templates, list_options, paper_rows.get(name))).encode()
  ).hexdigest()

  def rows(split: str) -> Iterator[Row]:
    worded = _rows(definition, split, origin, templates, list_options)
    if split != PAPER_SPLIT:
      return worded
    first = itertools.islice(worded, ROWS_JUDGED)
    return itertools.islice(distinct(first) if name in PAPER_BLEU else first, paper_rows[name])

  cluster = next(c for c, tasks in CLUSTERS.items() if definition in tasks)
  return Task(
    name=name,
    splits=tuple(slices),
    read=rows,
    fingerprint=origin.fingerprint,
    metrics=definition.metrics,
    version=f'1 {settings}',
    description=f'{cluster}; {definition.dataset.builder} in ten wordings of our own',
    suite=MIXTURE,
    sizes={'train': definition.rows}
    | ({PAPER_SPLIT: paper_rows[name]} if name in paper_rows else {}),
    rate=min(definition.rows, LARGEST_RATE),
    origin=origin,
  )


def mixture(
  name: str = MIXTURE,
  sources: Sources | None = None,
  *,
  answerable_only: bool = False,
  list_options: bool = True,
  paper_rows: Mapping[str, int] = PAPER,
) -> Mixture:
  """Makes the mixture of all 69 tasks, at rates of min(rows, 3,000), or one of the other SUITES.

  The rates of all 69 sum to 188,371. The other arguments are those of `task`.
  """
  make = functools.partial(
    task,
    sources=sources,
    answerable_only=answerable_only,
    list_options=list_options,
    paper_rows=paper_rows,
  )
  return Mixture(name, tuple(make(member) for member in SUITES[name]))


def distinct(rows: Iterable[Row]) -> Iterator[Row]:
  """Yields the first row of each prompt."""
  seen: set[str] = set()
  for row in rows:
    if row.inputs not in seen:
      seen.add(row.inputs)
      yield row


def _rows(
  definition: FlanTask,
  split: str,
  origin: DatasetSource,
  templates: list[Template],
  list_options: bool,
) -> Iterator[Row]:
  examples = origin.read(split, lambda _, example: definition.preprocess(example))
  for number, fields in enumerate(examples):
    template = number % len(templates)
    yield _row(
      f'{definition.name}/{split}/{number}', fields, templates[template], template, list_options
    )


def _row(id: str, fields: PromptFields, template: Template, number: int, list_options: bool) -> Row:
  inputs, answers = wording.render(template, fields, list_options=list_options)
  is_choice = template.targets == wording.ANSWER and fields.options
  return Row(
    id=id,
    inputs=inputs,
    answers=answers,
    options=fields.options if is_choice else (),
    label=fields.label if is_choice else None,
    group=fields.group,
    template=number,
  )
