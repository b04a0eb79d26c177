"""Answer the splits of a task with a small and a large model together, by many rules, and time it.

    python -m cascades.speculate --gin_file=runs/speculate.gin --gin_file=task.gin
      --gin.SMALL_CHECKPOINT_PATH=runs/mine/small --gin.LARGE_CHECKPOINT_PATH=runs/mine/large
      --gin.SPECULATE_OUTPUT_DIR=runs/mine/speculation

For every rule, alpha, number of drafts and temperature, and for either model alone, writes a table
of predictions, SPECULATE_OUTPUT_DIR/points/<point>/<split>/, which `evaluate` reads like others,
SPECULATE_OUTPUT_DIR/latency.json with the seconds per answer of each, and report.html,
frontier.json, frontier.csv and figures/ with quality against cost. Rerunning the same command
resumes it, and several that run at once divide the tables; more points can be added to the same
directory.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from cascades.checkpoints import store
from cascades.data.corpus import Corpus, Data
from cascades.data.records import Records
from cascades.evaluation import authorship, speculation
from cascades.inference import (
  answers,
  baselines,
  latency,
  pending_tables,
  points,
  shortlist,
  speculator,
  trained_model,
)
from cascades.inference.answers import Answered, DecodingOptions, Generator
from cascades.inference.pending_tables import PendingTable
from cascades.inference.points import DecodingPoint
from cascades.inference.speculator import Speculator, TokenCascade, check_pair
from cascades.inference.trained_model import Checkpoint, TrainedModel
from cascades.interop import companions
from cascades.reporting import speculation_report
from cascades.runtime import claims, files, profiling, ranges
from cascades.runtime.partitioning import Devices, Rules
from cascades.tasks import chats
from cascades.types import Vocabulary

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ModelPair:
  """Two trained models of one vocabulary and architecture.

  Attributes:
    small: Run directory of the model that drafts, or a checkpoint in one.
    large: Run directory of the model that verifies.
    small_which: 'last', 'best', or the number of a step.
    large_which: The same of the large model.
    precision: Type of the activations of both; None takes the models' own.
    weights: Type that holds the parameters; None takes that of the activations.
  """

  small: str
  large: str
  small_which: store.StepSelector = 'last'
  large_which: store.StepSelector = 'last'
  precision: str | None = 'float32'
  weights: str | None = None

  def __post_init__(self) -> None:
    for name, path in (('SMALL', self.small), ('LARGE', self.large)):
      if not isinstance(path, str):
        raise ValueError(f'{name}_CHECKPOINT_PATH={path!r:.80} is no path of a run: give one each.')

  def load(self, rules: Rules) -> tuple[TrainedModel, TrainedModel]:
    """Both models, on the active mesh. Raises ValueError if they cannot decode together."""
    small, large = (
      trained_model.load(Checkpoint(path, which, self.precision, self.weights), rules=rules)
      for path, which in ((self.small, self.small_which), (self.large, self.large_which))
    )
    check_pair(small, large)
    return small, large


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Ways to decode, all combinations of them.

  Attributes:
    rules: Alphas of each rule by its name in `target_distributions.RULES`; None for usual ones, or
      where the rule has none.
    token_cascades: The same for sequential token cascades, the baseline.
    gammas: Numbers of drafts of a block.
    temperatures: Temperatures of both models; 0 is greedy.
    top_k: As in `answers.DecodingOptions`.
    top_p: As in `answers.DecodingOptions`.
    seed: Seed of the samples.
    shortlist: Number of common tokens that may be drafted, besides those of the row's own prompt;
      None for all. See `shortlist`.
  """

  rules: Mapping[str, Sequence[float] | None]
  token_cascades: Mapping[str, Sequence[float] | None] = dataclasses.field(default_factory=dict)
  gammas: Sequence[int] = (5,)
  temperatures: Sequence[float] = (0.0,)
  top_k: int | None = None
  top_p: float | None = None
  seed: int = 0
  shortlist: int | None = None

  def __post_init__(self) -> None:
    ranges.check({'SHORTLIST': self.shortlist}, least=1, integer=True)
    for temperature in self.temperatures:
      self.options(temperature)
    if not self.points:
      raise ValueError('TEMPERATURES is empty: give one or more, as (0.0,).')

  @property
  def points(self) -> list[DecodingPoint]:
    """All points."""
    return points.grid(
      self.rules, self.token_cascades, gammas=self.gammas, temperatures=self.temperatures
    )

  def options(self, temperature: float) -> DecodingOptions:
    """Sampler of a temperature."""
    return DecodingOptions(float(temperature), self.top_k, self.top_p, self.seed)


@dataclasses.dataclass(frozen=True)
class Latency:
  """Measurement of seconds per answer.

  Attributes:
    batches: Sizes of batches; none measures nothing.
    rows: Number of rows, the first ones of the first split.
    turns: Measurements of each point, of which the median counts.
  """

  batches: Sequence[int] = (1, 8)
  rows: int = 64
  turns: int = 3

  def __post_init__(self) -> None:
    numbers = {f'LATENCY_BATCHES[{i}]': size for i, size in enumerate(self.batches)}
    numbers |= {'LATENCY_ROWS': self.rows, 'LATENCY_TURNS': self.turns}
    ranges.check(numbers, least=1, integer=True)


@dataclasses.dataclass(frozen=True)
class SweepOutput:
  """Directory of the tables and of the times.

  Attributes:
    directory: Directory that is written to.
    shard_rows: Approximate number of rows of a shard.
    overwrite: Replaces tables and times of other models or settings instead of refusing.
    lease: Seconds of silence after which the shard of another program is taken up.
  """

  directory: str
  shard_rows: int = 4096
  overwrite: bool = False
  lease: float = claims.LEASE

  def __post_init__(self) -> None:
    ranges.check({'SHARD_ROWS': self.shard_rows}, least=1, integer=True)
    ranges.check({'LEASE': self.lease}, above=0)


def speculate(
  pair: ModelPair,
  output: SweepOutput,
  *,
  data: Data,
  sweep: Sweep,
  timing: Latency = Latency(),
  splits: Sequence[str] = ('test',),
  prompts: chats.PromptFormat | None = None,
  devices: Devices = Devices(),
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Write a table of predictions and the seconds per answer for every point of a sweep.

  Args:
    pair: The models.
    output: Directory of the tables, and the size of their files.
    data: The rows. Answers have at most `lengths['targets']` tokens.
    sweep: The points.
    timing: Sizes of batches and rows that are timed.
    splits: Names of splits; a task of a mixture that lacks one is left out.
    prompts: Changes the prompt of a row, as in `infer`.
    devices: Mesh and sharding rules.
    provenance: Gives the configuration and versions that are recorded in manifests.

  Raises:
    ValueError: The models cannot decode together, a setting is out of range, or the directory holds
      tables or times of another origin.
    OSError: The directory cannot be written to. All are noticed before rows are answered.
  """
  directory = files.absolute(output.directory)
  with devices.use():
    small, large = pair.load(devices.rules)
    folder = store.locate(pair.large, pair.large_which)[0] / companions.FOLDER
    prompted = lambda task: prompts(task, folder, large.architecture) if prompts else task
    drafter = small
    if sweep.shortlist is not None:
      drafter = shortlist.from_answers(small, data, sweep.shortlist, prompted)
    answerers = _answerers(small, drafter, large, sweep, max_tokens=data.lengths['targets'])
    read: list[tuple[Corpus, Records]] = []
    tables: list[PendingTable] = []
    for task, task_splits in data.required_task.task_splits(splits):
      changed = prompted(task)
      corpus = data.corpus(large.vocabulary, large.architecture, task=changed)
      for split in task_splits:
        (records,) = corpus.open(split).per_task
        read.append((corpus, records))
        judge = functools.cache(functools.partial(baselines.judge, task, split))
        for point in sweep.points:
          described = {
            **_models(point, small if point.gamma is None else drafter, large),
            'task': task.name,
            'definition': changed.version,
            'split': split,
            'mode': 'predict',
            'decoding': dataclasses.asdict(sweep.options(point.temperature))
            | {'max_tokens': data.lengths['targets']},
            'metrics': list(task.metrics),
            'point': point._asdict(),
          }
          reader = answers.predictor(
            answerers[point.name], large.vocabulary, data.batch_size, profiling.Profiler('', None)
          )
          table = PendingTable(
            directory / 'points' / point.name / split, records, described, output.shard_rows,
            functools.partial(reader, corpus, records), dict if point.both else judge,
            output.lease,
          )  # fmt: skip
          tables.append(table)
    models = {points.SMALL: small, points.LARGE: large}
    if drafter is not small:
      models[points.DRAFTER] = drafter
    times = lambda: _latency_file(directory, output, timing, models, data, read[0][1])
    times()  # refuses those of another origin
    for table in tables:
      table.begin(overwrite=output.overwrite, setting='SPECULATE_OUTPUT_DIR')
    pending_tables.write_all(tables, provenance)
    with claims.alone(directory, 'latency.json', output.lease):
      if file := times():  # with those that another program has measured meanwhile
        _measure(file, timing, answerers, models, sweep, data, *read[0])
  with claims.alone(directory, 'report.html', output.lease):
    for split in dict.fromkeys(table.described['split'] for table in tables):
      summarize(directory, split, large.vocabulary, max_tokens=data.lengths['targets'])


def summarize(
  directory: epath.Path, split: str, vocabulary: Vocabulary, *, max_tokens: int
) -> None:
  """Compare all points of a split, and write report.html, frontier.json and figures/ beside them.

  Args:
    directory: Output directory of `speculate`; splits other than 'test' get a folder of their own.
    split: Name of the split.
    vocabulary: Vocabulary of the answers.
    max_tokens: Most tokens of an answer.
  """
  compared = speculation.frontier(directory, split=split)
  acceptance: dict[str, list[float]] = {}
  examples: list[speculation_report.ColoredAnswer] = []
  first = compared.cheapest()  # which the page opens with
  for point in sorted(compared.points, key=lambda point: point is not first):
    if point.gamma is None:
      continue
    folder = directory / 'points' / point.name / split
    drafted = (answer.drafted for answer in authorship.answers(folder))
    acceptance[point.name] = authorship.acceptance_by_position(
      drafted, point.gamma, max_tokens=max_tokens
    ).tolist()
    if not examples:
      decode = vocabulary.decode
      examples = speculation_report.colored(point.name, authorship.answers(folder), decode)
  output = directory if split == 'test' else directory / split
  speculation_report.write(output, compared, acceptance, examples)
  log.info('report: %s', output / 'report.html')


def _answerers(
  small: TrainedModel, drafter: TrainedModel, large: TrainedModel, sweep: Sweep, *, max_tokens: int
) -> dict[str, latency.Answerer]:
  """Function that answers prompts for each point, by name; programs are shared and compile late."""

  @functools.cache
  def program(rule: str, gamma: int | None, temperature: float) -> Callable[..., Answered]:
    options = sweep.options(temperature)
    if gamma is None:
      name = rule.removeprefix(points.SEQUENTIAL)
      return TokenCascade(small, large, name, max_tokens=max_tokens, options=options).answer
    return Speculator(
      drafter, large, rule, gamma=gamma, max_tokens=max_tokens, options=options
    ).answer

  def answerer(point: DecodingPoint) -> latency.Answerer:
    if point.both:
      shared = program(point.rule, point.gamma, point.temperature)
      return functools.partial(shared, alpha=point.alpha or 0.0)
    model = small if point.rule == points.SMALL else large
    generator = Generator(model, max_tokens, sweep.options(point.temperature))
    return functools.partial(speculator.answer_alone, generator, point.rule)

  return {point.name: answerer(point) for point in sweep.points}


def _models(point: DecodingPoint, small: TrainedModel, large: TrainedModel) -> dict[str, Any]:
  """Descriptions of the model whose log-probabilities a table has, and of the one that drafts."""
  if not point.both:
    return dict((small if point.rule == points.SMALL else large).described)
  names = ('checkpoint_identity', 'step', 'parameters', 'flops_per_token', 'shortlist')
  own = {name: small.described[name] for name in names if name in small.described}
  return {**large.described, 'small': own}


def _latency_file(
  directory: epath.Path,
  output: SweepOutput,
  timing: Latency,
  models: Mapping[str, TrainedModel],
  data: Data,
  split: Records,
) -> latency.LatencyFile | None:
  """File of the times; None if there is nothing to measure."""
  if not timing.batches:
    return None
  small, large = (
    {name: model.described[name] for name in ('step', 'precision', 'weights')}
    | {'digest': hashlib.sha256(model.described['checkpoint_identity'].encode()).hexdigest()[:16]}
    for model in (models[points.SMALL], models[points.LARGE])
  )
  origin = {
    'machine': latency.machine(),
    'small': small,
    'large': large,
    'records': split.directory.name,
    'rows': min(timing.rows, len(split)),
    'max_tokens': data.lengths['targets'],
    'shortlist': models.get(points.DRAFTER, models[points.SMALL]).described.get('shortlist'),
  }
  return latency.LatencyFile(directory / 'latency.json', origin, overwrite=output.overwrite)


def _measure(
  file: latency.LatencyFile,
  timing: Latency,
  answerers: Mapping[str, latency.Answerer],
  models: Mapping[str, TrainedModel],
  sweep: Sweep,
  data: Data,
  corpus: Corpus,
  split: Records,
) -> None:
  """Time the first rows of a split: all points, then the steps of the models."""

  def batches(size: int) -> Iterator[latency.TimedBatch]:
    numbers = range(min(timing.rows, len(split)))
    for bucket in corpus.buckets(split, numbers, batch_size=size):
      prompts = corpus.prompts(split, bucket, batch_size=size)
      row_ids = np.resize(bucket.indices, len(prompts.length))
      yield latency.TimedBatch(prompts, row_ids, len(bucket.indices))

  by_size = {size: list(batches(size)) for size in timing.batches}
  for temperature, size in itertools.product(sweep.temperatures, timing.batches):
    log.info('seconds per answer at temperature %g, batches of %d', temperature, size)
    own = {p.name: answerers[p.name] for p in sweep.points if p.temperature == temperature}
    latency.measure_answers(file, own, {size: by_size[size]}, turns=timing.turns)
    jax.clear_caches()  # an operating system maps no more than some dozen programs
  widths = range(1, max(sweep.gammas) + 2)
  latency.measure_steps(
    file,
    {
      name: (model, widths if name == points.LARGE else widths[:1])
      for name, model in models.items()
    },
    {size: own[len(own) // 2].prompts for size, own in by_size.items()},
    max_tokens=data.lengths['targets'],
  )
  log.info('seconds per answer in %s', file.path)


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.speculate')
