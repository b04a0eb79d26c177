"""Repetition in the greedy answers of a small model, and the deferral rules that see it.

    python -m experiments.repetition --source=SmolLM2-135M-Instruct.Q4_1.gguf --data=../shared/data

`--source` is what `python -m cascades.convert` reads, a model with a chat template. The answers are
those of `python -m cascades.infer`; the same command again resumes. See repetition.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from benchmarks import bars
from benchmarks.bars import Measured
from cascades import deferral, metrics
from cascades.predictions import shards
from cascades.types import Predictions
from experiments.loops import Interval, N, auroc, interval, loops, occurrences, repeated_share

HERE = pathlib.Path(__file__).parent
PILOT = 20  # first rows of each set, read while this was written

TASK = """from __gin__ import dynamic_registration
from cascades.tasks import chats
from cascades.tasks import local
TASK = @local.local_jsonl()
TASK_FEATURE_LENGTHS = {{'inputs': 256, 'targets': {targets}}}
PROMPTS = @chats.{prompts}
local.local_jsonl.name = '{name}'
local.local_jsonl.targets_key = None
local.local_jsonl.splits = {{'test': '{directory}/rows.jsonl'}}
"""


class Questions(NamedTuple):
  """Prompts of a set.

  Fields: `file` under the data, `text` and `gold` keys of a row, and `right`, True if an answer is
  right by one of the gold answers; None for open questions. `prompts` is a format of `tasks.chats`.
  """

  file: str
  text: str
  gold: str = ''
  right: Callable[[str, Sequence[str]], bool] | None = None
  prompts: str = 'chat'


def names_an_alias(answer: str, aliases: Sequence[str]) -> bool:
  """True if the words of an alias stand in the answer, both normalized as TriviaQA does."""
  words = f' {metrics.triviaqa_normalize(answer)} '
  return any(f' {metrics.triviaqa_normalize(alias)} ' in words for alias in aliases)


def ends_with_the_number(answer: str, gold: Sequence[str]) -> bool:
  """True if the last number of the answer is that of the gold answer."""
  numbers = re.findall(r'-?\d+(?:\.\d+)?', answer.replace(',', ''))
  return bool(numbers) and float(numbers[-1]) == float(gold[0].replace(',', ''))


SETS = {
  'triviaqa': Questions('flan_tasks/triviaqa_small.eval.jsonl', 'input', 'aliases', names_an_alias),
  'gsm8k': Questions('flan_tasks/gsm8k.test.jsonl', 'input', 'target', ends_with_the_number),
  'alpaca_eval': Questions('routing_alpaca_eval/prompts.jsonl.gz', 'text'),
  'lambada': Questions('flan_tasks/lambada_openai.test.jsonl', 'input', prompts='continuation'),
}


def new_tokens(table: Predictions, counts: Int[np.ndarray, 'L']) -> Float[np.ndarray, 'N']:
  """Negative mean log-probability of the tokens that end no repeated n-gram."""
  logprobs, mask = table.padded()
  new = np.zeros_like(mask)
  new[mask] = counts == 0
  return deferral.average(logprobs, new)


class Answers(NamedTuple):
  """Answers of all sets, one after another, and what is measured of each."""

  tokens: list[list[int]]
  logprobs: list[Float[np.ndarray, 'T']]
  counts: list[Int[np.ndarray, 'T']]  # `occurrences`
  scores: dict[str, Float[np.ndarray, 'N']]  # by decider
  looping: Bool[np.ndarray, 'N']
  wrong: Float[np.ndarray, 'N']  # nan without gold answers
  strata: Int[np.ndarray, 'N']  # set

  @property
  def cut(self) -> Bool[np.ndarray, 'N']:
    """True for answers of the greatest length, which did not end."""
    lengths = np.array([len(tokens) for tokens in self.tokens])
    return lengths == lengths.max()


def collect(tables: Sequence[Predictions], rows: Sequence[Sequence[Any]]) -> Answers:
  """Measurements of the answers.

  Args:
    tables: Table of each set.
    rows: By set, tokens of each answer and True, False or None where it is right, wrong, or open.
  """
  tokens = [row[0] for of_set in rows for row in of_set]
  counts = [occurrences(answer) for answer in tokens]
  per_set: dict[str, list[Float[np.ndarray, 'n']]] = {}
  logprobs: list[Float[np.ndarray, 'T']] = []
  start = 0
  for table in tables:
    logprobs += np.split(table.token_logprobs, np.cumsum(table.lengths)[:-1])
    end = start + len(table.lengths)
    for name, decider in deferral.DECIDERS.items():
      if not deferral.missing(decider.reads, table):
        per_set.setdefault(name, []).append(decider.score(table))
    inside = np.concatenate(counts[start:end])
    per_set.setdefault('new tokens', []).append(new_tokens(table, inside))
    per_set.setdefault('repeated share', []).append(
      np.array([repeated_share(answer) for answer in tokens[start:end]])
    )
    start = end
  verdicts = [row[1] for of_set in rows for row in of_set]
  return Answers(
    tokens=tokens,
    logprobs=logprobs,
    counts=counts,
    scores={name: np.concatenate(values) for name, values in per_set.items()},
    looping=np.array([loops(answer) for answer in tokens]),
    wrong=np.array([np.nan if verdict is None else float(not verdict) for verdict in verdicts]),
    strata=np.repeat(np.arange(len(rows)), [len(of_set) for of_set in rows]),
  )


def confidence_by_occurrence(answers: Answers, most: int = 3) -> list[Interval]:
  """Mean log-probability of tokens whose n-gram has occurred 0, 1, .. `most` or more times.

  Each answer counts once: its mean first, then the mean over the answers that have such tokens.
  """
  means = np.full((len(answers.tokens), most + 1), np.nan)
  for row, (logprobs, counts) in enumerate(zip(answers.logprobs, answers.counts, strict=True)):
    for times in range(most + 1):
      if (chosen := np.minimum(counts, most) == times).any():
        means[row, times] = logprobs[chosen].mean()
  return [
    interval(lambda rows, values=means[:, times]: _mean(values[rows]), answers.strata)
    for times in range(most + 1)
  ]


def rise(answers: Answers) -> Interval:
  """Mean log-probability of repeated less that of new tokens, within each answer that has both."""
  pairs = zip(answers.logprobs, answers.counts, strict=True)
  differences = np.array([
    logprobs[counts > 0].mean() - logprobs[counts == 0].mean()
    if 0 < (counts > 0).sum() < len(counts) else np.nan
    for logprobs, counts in pairs
  ])  # fmt: skip
  return interval(lambda rows: _mean(differences[rows]), answers.strata)


def _mean(values: Float[np.ndarray, 'n']) -> float:
  return float(np.nanmean(values)) if np.isfinite(values).any() else float('nan')


def detection(
  answers: Answers, positive: Bool[np.ndarray, 'N'], chosen: Bool[np.ndarray, 'N']
) -> dict[str, Interval]:
  """AUROC of each decider against `positive`, on the chosen answers, within sets."""
  strata = answers.strata[chosen]
  return {
    name: interval(
      lambda rows, score=score[chosen]: auroc(score[rows], positive[chosen][rows], strata[rows]),
      strata,
    )
    for name, score in answers.scores.items()
  }


def difference(
  answers: Answers, names: tuple[str, str], positive: Bool[np.ndarray, 'N'],
  chosen: Bool[np.ndarray, 'N'],
) -> Interval:  # fmt: skip
  """AUROC of the first decider less that of the second, on the same resamples."""
  strata = answers.strata[chosen]
  first, second = (answers.scores[name][chosen] for name in names)
  right = positive[chosen]
  return interval(
    lambda rows: (
      auroc(first[rows], right[rows], strata[rows]) - auroc(second[rows], right[rows], strata[rows])
    ),
    strata,
  )


def answer_all(options: argparse.Namespace) -> tuple[list[Predictions], list[list[Any]]]:
  """Tables of all sets; converts the model and answers what has no answer yet."""
  root = options.runs_dir.absolute()
  if not (root / 'model').exists():
    _run(
      f'python -m cascades.convert --gin_file=runs/convert.gin --gin.SOURCE={options.source} '
      f'--gin.MODEL_DIR={root}/model'
    )
  tables, rows = [], []
  for name, questions in SETS.items():
    chosen = _read(options.data / questions.file)[PILOT : PILOT + options.count]
    directory = root / name
    directory.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({'inputs': row[questions.text]}) for row in chosen]
    (directory / 'rows.jsonl').write_text('\n'.join([*lines, '']))
    settings = {'name': name, 'directory': directory, 'prompts': questions.prompts}
    (directory / 'task.gin').write_text(TASK.format(targets=options.tokens, **settings))
    _run(
      f'python -m cascades.infer --gin_file=runs/infer.gin --gin_file={directory}/task.gin '
      f'--gin.CHECKPOINT_PATH={root}/model --gin.INFER_OUTPUT_DIR={directory}/answers '
      f'--gin.BATCH_SIZE={options.batch_size} --gin.SHARD_ROWS={options.batch_size} '
      f'--gin.ALTERNATIVES=8 --gin.RECORDS_DIR={root}/records'
    )
    (table,) = shards.read(directory / 'answers' / 'test')
    _, answered = shards.read_rows(directory / 'answers' / 'test', task=name)
    tables.append(table)
    rows.append([
      (list(map(int, answer.tokens)), _verdict(questions, answer.prediction, row))
      for answer, row in zip(answered, chosen, strict=True)
    ])  # fmt: skip
  return tables, rows


def _verdict(questions: Questions, prediction: str, row: dict[str, Any]) -> bool | None:
  if questions.right is None:
    return None
  gold = row[questions.gold]
  return questions.right(prediction, [gold] if isinstance(gold, str) else gold)


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
  opened = gzip.open if path.suffix == '.gz' else open
  with opened(path, 'rt', encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def _run(line: str) -> None:
  print(line, flush=True)
  subprocess.run([sys.executable, *shlex.split(line)[1:]], check=True)


def measure(answers: Answers) -> Iterator[Measured]:
  """Rows of the result; the bars are those of the page's protocol."""
  gold = np.isfinite(answers.wrong)
  wrong = answers.wrong == 1
  every, cut = np.ones(len(answers.tokens), bool), answers.cut
  for stratum, name in enumerate(SETS):
    inside = answers.strata == stratum
    yield Measured(f'{name}: answers', inside.sum(), 'rows')
    yield Measured(f'{name}: cut at the limit', answers.cut[inside].mean(), 'of rows')
    yield Measured(f'{name}: looping', answers.looping[inside].mean(), 'of rows')
    if gold[inside].all():
      yield Measured(f'{name}: wrong', wrong[inside].mean(), 'of rows')
  for times, value in enumerate(confidence_by_occurrence(answers)):
    what = f'log-probability, n-gram seen {times}{" or more" * (times == 3)} times'
    yield Measured(what, value.value, 'nats', note=str(value))
  value = rise(answers)
  yield Measured('log-probability, repeated less new tokens', value.value, 'nats', note=str(value))
  for what, positive, chosen in (
    ('looping', answers.looping, every),
    ('looping, among cut answers', answers.looping, cut),
    ('wrong', wrong, gold),
  ):
    for name, value in detection(answers, positive, chosen).items():
      yield Measured(f'{name} against {what}', value.value, 'AUROC', note=str(value))
    value = difference(answers, ('new tokens', 'average'), positive, chosen)
    yield Measured(f'new tokens less average, {what}', value.value, 'AUROC', note=str(value))
  for rate in (0.2, 0.5):
    left = remaining(answers, 'average', rate)
    yield Measured(f'looping answers that average keeps at {rate:.0%}', left, 'of loops')


def remaining(answers: Answers, name: str, rate: float) -> float:
  """Share of the looping answers that are not deferred when `rate` of each set's answers are."""
  lasting = 0
  for stratum in np.unique(answers.strata):
    inside = answers.strata == stratum
    score = answers.scores[name][inside]
    stays = np.argsort(-score, kind='stable')[round(rate * len(score)) :]
    lasting += int(answers.looping[inside][stays].sum())
  return lasting / max(1, int(answers.looping.sum()))


def draw(answers: Answers, path: pathlib.Path) -> None:
  """Confidence by occurrence, and AUROC of each decider against looping."""
  from matplotlib import pyplot as plt

  figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
  values = confidence_by_occurrence(answers)
  left.errorbar(range(len(values)), [v.value for v in values], _bars(values), fmt='o-', capsize=3)
  left.set_xticks(range(len(values)), [*map(str, range(len(values) - 1)), f'{len(values) - 1}+'])
  left.set(xlabel=f'earlier occurrences of the {N}-gram', ylabel='log-probability of its end')
  by_name = detection(answers, answers.looping, np.ones(len(answers.tokens), bool))
  ordered = sorted(by_name.items(), key=lambda item: item[1].value)
  shown = [value for _, value in ordered]
  rows = range(len(shown))
  right.errorbar([v.value for v in shown], rows, xerr=_bars(shown), fmt='o', capsize=3)
  right.set_yticks(rows, [name for name, _ in ordered])
  right.axvline(0.5, color='gray', linewidth=1)
  right.set(xlabel='AUROC against looping (0.5: blind; below: keeps loops)', xlim=(0, 1.02))
  figure.savefig(path, dpi=90)
  plt.close(figure)


def _bars(values: Sequence[Interval]) -> Float[np.ndarray, '2 n']:
  return np.maximum([[v.value - v.low for v in values], [v.high - v.value for v in values]], 0)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--source', required=True)
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--count', type=int, default=60, help='questions of each set')
  parser.add_argument('--tokens', type=int, default=192, help='the longest answer')
  parser.add_argument('--batch_size', type=int, default=30)
  parser.add_argument('--runs_dir', type=pathlib.Path, default=pathlib.Path('runs/repetition'))
  parser.add_argument('--output', type=pathlib.Path, default=HERE / 'repetition.json')
  options = parser.parse_args()
  answers = collect(*answer_all(options))
  settings = vars(options) | {'source': pathlib.Path(options.source).name}
  del settings['runs_dir']
  rows = [row for row in measure(answers) if np.isfinite(row.value)]  # nan: no pairs
  bars.report('repetition in greedy answers', rows, options.output, settings)
  draw(answers, options.output.with_suffix('.png'))


if __name__ == '__main__':
  main()
