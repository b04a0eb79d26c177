"""All rules, numbers of drafts and temperatures on pairs of models over several seeds.

    python -m benchmarks.speculation_sweep runs/demo runs/seed1 runs/seed2
    python -m benchmarks.speculation_sweep --task tanaka runs/tanaka/seed0 runs/tanaka/seed1
    python -m benchmarks.speculation_sweep --task smollm2 runs/smollm2_{pair,seed1,seed2}

Each folder has the small model and the `large` one of a seed, as those of `launch.demo` and of
`benchmarks.smollm2_drafter` have, and keeps the points that were measured, so that the same command
resumes. Quality, calls of the large model, rejected drafts and lengths, no times: the protocol is
in docs/speculative.md. The rule is a traced number, so that all of them share one program for each
number of drafts and temperature. Without folders, the figure is drawn from the written results.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from benchmarks import bars, cat_tasks, distillspec_pairs, speculation_claims
from benchmarks.cat_tasks import Folders
from benchmarks.drafters import LENGTHS, load
from cascades import curves, decoding, deferral, metrics
from cascades.data.corpus import Data
from cascades.inference import points, speculation, token_cascade
from cascades.inference.answers import DecodingOptions
from cascades.inference.points import LARGE, SMALL, DecodingPoint
from cascades.inference.speculation import Speculation
from cascades.inference.trained_model import TrainedModel
from cascades.runtime import files, partitioning
from cascades.target_distributions import RULES, SEQUENTIAL
from cascades.tasks import catalog
from cascades.tasks.task import Mixture, Task
from cascades.types import Generation, Metric, Params, Prompt

DATA = pathlib.Path(__file__).parents[2] / 'shared' / 'data'
GAMMA, OTHER_GAMMAS = 5, (1, 3, 7)  # drafts with all chosen alphas, and with one alpha a rule
TEMPERATURES = (0.0, 0.5, 1.0)
NAMES = [name for name in RULES if name not in (SMALL, LARGE)]
# At temperature 0 these give the tokens of others: of `lossless`, or of `opt` with the same alpha.
REPEATED = ('lossy', 'lossy_normalized', 'lossy_square', 'lossy_power', 'diff', 'token_v1')
RATES = np.linspace(0, 1, 101)

Program = Callable[..., Speculation]


class Setting(NamedTuple):
  """Rows that are answered.

  Attributes:
    task: Function from the folder of a seed to the task.
    metric: Quality of the answers.
    lengths: Most tokens of prompts and of answers.
    rows: Number of rows at GAMMA.
    few_rows: Number of rows at OTHER_GAMMAS, for calls and rejections.
    batch: Rows that are answered together, each with `width` tokens of prompt.
    split: Their split.
    small: Folder of the small model.
    chosen: Places of the usual alphas that are measured at GAMMA; elsewhere it is the second.
  """

  task: Callable[[pathlib.Path], Task | Mixture]
  metric: Metric
  lengths: Mapping[str, int]
  rows: int
  few_rows: int = 256
  batch: int = 512
  width: int = 32
  split: str = 'validation'
  small: str = 'xent'
  chosen: Sequence[int] = (0, 1, 3)

  def alphas(self, name: str) -> list[float] | None:
    """Alphas of a rule that are measured; None for a rule without."""
    if RULES[name].alphas is None:
      return None
    return [points.usual_alphas(name)[index] for index in self.chosen]

  def grid(self, temperature: float, gamma: int) -> list[DecodingPoint]:
    """Points of one temperature and number of drafts, models alone and token cascades at GAMMA."""
    names = [name for name in NAMES if temperature or name not in REPEATED]
    chosen = {name: self.alphas(name) for name in names}
    if gamma == GAMMA:
      cascades = {name: self.alphas(name) for name in SEQUENTIAL}
      return points.grid(chosen, cascades, gammas=[gamma], temperatures=[temperature])
    few = {name: own and [points.usual_alphas(name)[1]] for name, own in chosen.items()}
    own = points.grid(few, {}, gammas=[gamma], temperatures=[temperature])
    return [point for point in own if point.both]


def _tanaka(folder: pathlib.Path) -> Task | Mixture:
  return cat_tasks.SETTINGS['tanaka'].task(Folders(DATA, folder), 0.0)


SETTINGS = {
  'g2p': Setting(lambda _: catalog.get('cmudict_g2p'), metrics.word_accuracy, LENGTHS, 1024),
  'tanaka': Setting(_tanaka, metrics.bleu('char'), LENGTHS, 500, batch=256),
  'smollm2': Setting(
    distillspec_pairs.gsm8k, metrics.rouge('rougeL'), {'inputs': 128, 'targets': 32}, 16,
    few_rows=8, batch=8, width=128, split='test', small='small', chosen=(1, 3),
  ),
}  # fmt: skip


class Rows(NamedTuple):
  """Rows of a split in batches of one shape, with the right answers."""

  prompts: Sequence[Prompt]
  numbers: Sequence[np.ndarray]
  answers: Sequence[Sequence[Sequence[str]]]


class Seed(NamedTuple):
  """Pair of models of one seed, and the rows in its vocabulary."""

  folder: pathlib.Path
  setting: Setting
  models: tuple[TrainedModel, TrainedModel]
  most: Rows
  few: Rows

  @property
  def file(self) -> pathlib.Path:
    return self.folder / 'speculation_sweep.json'

  def read(self) -> dict[str, Any]:
    """Numbers that have been measured, by name of the point."""
    stored: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
    return stored

  def keep(self, name: str, numbers: Any) -> None:
    files.write(self.file, json.dumps(self.read() | {name: numbers}).encode())


def open_seed(folder: pathlib.Path, setting: Setting) -> Seed:
  small, large = load(folder / setting.small), load(folder / 'large')
  batch, width = setting.batch, setting.width
  data = Data(task=setting.task(folder), lengths=setting.lengths, batch_size=batch)
  corpus = data.corpus(large.vocabulary, large.architecture)
  (records,) = corpus.open(setting.split).per_task

  def spread(count: int) -> Rows:
    numbers = np.linspace(0, len(records) - 1, count).astype(int).tolist()
    buckets = corpus.buckets(records, numbers, batch_size=batch)
    read = (corpus.prompts(records, bucket, batch_size=batch) for bucket in buckets)
    prompts = [
      Prompt(np.pad(tokens, ((0, 0), (0, width - tokens.shape[1]))), length)
      for tokens, length in read
    ]
    answers = [[r.row.answers for r in records.read(bucket.indices)] for bucket in buckets]
    return Rows(prompts, [bucket.indices for bucket in buckets], answers)

  return Seed(folder, setting, (small, large), spread(setting.rows), spread(setting.few_rows))


def program(seed: Seed, rule: str | None, gamma: int | None, temperature: float) -> Program:
  """Program of a token cascade or model alone, or of all rules that draft, which get a number."""
  small, large = seed.models
  graphs, eos_id = (small.graph, large.graph), large.vocabulary.eos_ids
  options, max_len = DecodingOptions(temperature), seed.setting.lengths['targets']
  targets = [RULES[name].target for name in NAMES]

  @jax.jit
  def generate(
    params: tuple[Params, Params], prompt: Prompt, row_ids: Array, number: Array, alpha: Array
  ) -> Speculation:
    models = [nnx.merge(graph, own) for graph, own in zip(graphs, params, strict=True)]
    if gamma is not None:
      pair = speculation.SpeculativePair(
        *models, lambda q, p, alpha: jax.lax.switch(number, targets, q, p, alpha), alpha, options
      )
      return speculation.generate(
        pair, prompt, max_len=max_len, eos_id=eos_id, gamma=gamma, row_ids=row_ids
      )
    if rule in (SMALL, LARGE):
      return _alone(
        models[rule == LARGE], prompt, row_ids, max_len=max_len, eos_id=eos_id, options=options
      )
    return token_cascade.generate(
      *models, prompt, rule=str(rule).removeprefix(points.SEQUENTIAL), alpha=alpha, max_len=max_len,
      eos_id=eos_id, options=options, row_ids=row_ids,
    )  # fmt: skip

  return generate


def _alone(
  model: Any, prompt: Prompt, row_ids: Array, *, max_len: int, eos_id: Sequence[int],
  options: DecodingOptions,
) -> Speculation:  # fmt: skip
  answer = decoding.generate(
    model, prompt, max_len=max_len, eos_id=eos_id, sampler=options.sampler(),
    key=jax.random.key(options.seed), row_ids=row_ids,
  )  # fmt: skip
  length = answer.mask.sum(1)
  counts = speculation.CallCounts(0 * length, 0 * length, 0 * length, length)
  return Speculation(answer, answer.logprobs, answer.mask, counts)


class Answers(NamedTuple):
  """Answers to all rows, in the order of `Rows`."""

  generation: Generation
  statistics: np.ndarray
  counts: speculation.CallCounts


def answer(seed: Seed, run: Program, point: DecodingPoint, given: Rows) -> Answers:
  """Answers of a point."""
  params = tuple(model.params for model in seed.models)
  number = NAMES.index(point.rule) if point.gamma is not None else 0
  vocabulary, batches = seed.models[0].vocabulary, []
  for prompt, numbers, right in zip(*given, strict=True):
    row_ids = np.resize(numbers, len(prompt.length)).astype(np.int32)
    spoken = run(params, prompt, row_ids, jnp.int32(number), jnp.float32(point.alpha or 0.0))
    filled = slice(len(numbers))  # the last row is repeated
    rows = jax.tree.map(lambda x, own=filled: np.asarray(x)[own], (spoken.answer, spoken.counts))
    texts = [vocabulary.decode(t[m]) for t, m in zip(rows[0].tokens, rows[0].mask, strict=True)]
    judge = seed.setting.metric.statistics
    judged = [judge(targets, text) for targets, text in zip(right, texts, strict=True)]
    batches.append(Answers(rows[0], np.array(judged), rows[1]))
  return jax.tree.map(lambda *x: np.concatenate(x), *batches)


def numbers(answers: Answers, point: DecodingPoint, metric: Metric) -> dict[str, float | None]:
  """Quality, and means over rows."""
  accepted, rejected = int(answers.counts.accepted.sum()), int(answers.counts.rejected.sum())
  tested = accepted + rejected if point.gamma is not None else 0
  calls = 0.0 if point.rule == SMALL else float(answers.counts.large_calls.mean())
  return {
    'quality': float(metric.finalize(answers.statistics.sum(0))),
    'large_calls': calls,
    'rejection_rate': rejected / tested if tested else None,
    'tokens': float(answers.generation.mask.sum(1).mean()),
  }


def sequence(small: Answers, large: Answers, metric: Metric) -> dict[str, dict[str, list[float]]]:
  """Quality and calls of the sequence cascade at RATES, by deferral rule."""
  calls, rows = large.counts.large_calls[:, None].astype(float), len(small.statistics)
  drawn = {}
  for name, rule in deferral.PAPER.items():
    score = rule(small.generation.logprobs, small.generation.mask)
    quality = curves.deferral_curve(
      score, small.statistics, large.statistics, metric.finalize, lambda rate: rate
    )
    paid = curves.deferral_curve(
      score, 0 * calls, calls, lambda sums: sums[:, 0] / rows, lambda rate: rate
    )
    drawn[name] = {
      column: np.interp(RATES, curve.deferral_rate, curve.quality).round(6).tolist()
      for column, curve in (('quality', quality), ('large_calls', paid))
    }
  return drawn


def measure(seeds: Sequence[Seed]) -> None:
  """Measure what is missing, program by program, so that all seeds share them."""
  for temperature in TEMPERATURES:
    for gamma in (GAMMA, *OTHER_GAMMAS):
      shared = functools.cache(functools.partial(program, seeds[0], temperature=temperature))
      for seed in seeds:
        began, done = time.monotonic(), 0
        rows, metric = seed.most if gamma == GAMMA else seed.few, seed.setting.metric
        alone: dict[str, Answers] = {}
        for point in seed.setting.grid(temperature, gamma):
          stored = seed.read()
          own = point.rule if point.gamma is None else None
          ends = own in (SMALL, LARGE) and f'sequence-temperature{temperature:g}' not in stored
          if point.name in stored and not ends:
            continue
          answers = answer(seed, shared(rule=own, gamma=point.gamma), point, rows)
          seed.keep(point.name, numbers(answers, point, metric))
          done += 1
          if ends:
            alone[point.rule] = answers
          if len(alone) == 2:
            seed.keep(f'sequence-temperature{temperature:g}', sequence(**alone, metric=metric))
            alone = {}
        took = time.monotonic() - began
        print(f'{seed.folder.name}: T {temperature:g}, gamma {gamma}, {done} points, {took:.0f} s',
              flush=True)  # fmt: skip
      jax.clear_caches()


def details(seeds: Sequence[Seed]) -> dict[str, Any]:
  """Numbers of all points and of the best sequence cascade, each a list over the seeds."""
  stored = [seed.read() for seed in seeds]
  described: dict[str, Any] = {'points': {}, 'sequence': {}, 'rates': RATES.tolist()}
  for temperature in TEMPERATURES:
    for gamma in (GAMMA, *OTHER_GAMMAS):
      for point in seeds[0].setting.grid(temperature, gamma):
        by_seed = {
          column: [own[point.name][column] for own in stored]
          for column in ('quality', 'large_calls', 'rejection_rate', 'tokens')
        }
        described['points'][point.name] = point._asdict() | by_seed
    cascades = [own[f'sequence-temperature{temperature:g}'] for own in stored]
    best = speculation_claims.best_sequence(cascades)
    described['sequence'][f'{temperature:g}'] = [{best: cascade[best]} for cascade in cascades]
  return described


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('folders', nargs='*', type=pathlib.Path)
  parser.add_argument('--task', choices=SETTINGS, default='g2p')
  parser.add_argument('--output', default=bars.RESULTS / 'speculation_sweep.json')
  parser.add_argument('--figure', type=pathlib.Path, help='PNG file to draw')
  options = parser.parse_args()
  if not (options.folders or options.figure):
    parser.error('name folders of launch.demo to measure, or a --figure of written results to draw')
  if options.folders:
    with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
      setting = SETTINGS[options.task]
      seeds = [open_seed(folder, setting) for folder in options.folders]
      measure(seeds)
    measured = details(seeds)
    settings = {
      'task': options.task, 'folders': len(seeds), 'split': setting.split, 'gamma': GAMMA,
      'rows': setting.rows, 'rows at other gammas': setting.few_rows,
    }  # fmt: skip
    rows = list(speculation_claims.rows(measured, GAMMA))
    bars.report('Sweep of speculation', rows, options.output, settings, measured)
  if options.figure:
    results = json.loads(pathlib.Path(options.output).read_text())
    speculation_claims.draw(results['details'], GAMMA, options.figure)


if __name__ == '__main__':
  main()
