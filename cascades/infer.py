"""Answer the splits of a task with a trained model, with the log-probability of every token.

    python -m cascades.infer --gin_file=runs/infer.gin --gin.CHECKPOINT_PATH="'runs/demo/large'"
      --gin.MIXTURE_OR_TASK_NAME="'cmudict_g2p'" --gin.SPLITS="['validation', 'test']"

Writes one table of predictions per split, INFER_OUTPUT_DIR/<split>/, as sharded JSON lines with a
manifest; a mixture has one table per task in the same directory. Mode `score` computes the
log-probabilities of the targets, or ranks the options, instead of decoding answers. Rerunning the
same command writes the shards that are missing, and several that run at once divide them, on one
machine or on many; a table of another checkpoint or decoding is replaced only with OVERWRITE=True.
CHECKPOINT_PATH=http://host:port/v1#model asks an
OpenAI-compatible server instead of loading a model, and uses no accelerator; see
`inference.endpoints`. MEMORY=runs/memory adds the entries of `memorize` to a model: its tables then
hold log-probabilities of the augmented distribution, clipped and renormalized.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from cascades.data.corpus import Data
from cascades.data.records import Records
from cascades.inference import (
  answers,
  baselines,
  endpoint_answers,
  endpoints,
  features,
  trained_model,
)
from cascades.inference.pending_tables import NumberedRows, PendingTable
from cascades.interop import companions
from cascades.predictions import rows
from cascades.runtime import claims, files, profiling, progress, ranges
from cascades.runtime.partitioning import Devices
from cascades.tasks import chats
from cascades.tasks.task import Task
from cascades.tokenizers import vocabularies

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Output:
  """The tables that are written.

  Attributes:
    directory: Directory of the tables, one a split and task.
    shard_rows: Approximate number of rows of a shard.
    overwrite: Replaces tables of another checkpoint or decoding instead of refusing.
    embeddings: Arrays that are written beside each table, for learned deferral: names in
      `features.NAMES`. They can be added to a finished table.
    alternatives: Number of most likely tokens at each position whose log-probabilities are
      stored, for the scores `entropy` and `margin`.
    lease: Seconds of silence after which the shard of another program is taken up.
  """

  directory: str
  shard_rows: int = 4096
  overwrite: bool = False
  embeddings: Sequence[str] = ()
  alternatives: int = 0
  lease: float = claims.LEASE

  def __post_init__(self) -> None:
    features.check(self.embeddings)
    ranges.check({'SHARD_ROWS': self.shard_rows}, least=1, integer=True)
    ranges.check({'ALTERNATIVES': self.alternatives}, least=0, integer=True)
    ranges.check({'LEASE': self.lease}, above=0)


def infer(
  checkpoint: trained_model.Checkpoint,
  output: Output,
  *,
  data: Data,
  splits: Sequence[str] = ('test',),
  mode: rows.Mode = 'predict',
  candidates: answers.Candidates = 'targets',
  prompts: chats.PromptFormat | None = None,
  decoding_options: answers.DecodingOptions = answers.DecodingOptions(),
  endpoint: endpoints.Endpoint = endpoints.Endpoint(),
  devices: Devices = Devices(),
  profile_steps: str | None = None,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Write a model's tables of predictions for the splits of a task.

  Args:
    checkpoint: The model. Both types of its numbers are recorded in the manifest. Its path may be
      the URL of an endpoint.
    output: Directory of the tables, and the size of their files.
    data: The rows. Answers have at most `lengths['targets']` tokens.
    splits: Names of splits; a task of a mixture that lacks one is left out.
    mode: 'predict' decodes answers; 'score' computes log-probabilities of given ones.
    candidates: Answers that are scored: a row's 'targets', or each of its 'options'.
    prompts: Changes the prompt of a row: `chats.chat` applies the model's own chat template.
    decoding_options: Temperature and seed of mode 'predict'.
    endpoint: Requests to an endpoint.
    devices: Mesh and sharding rules.
    profile_steps: Batches to be traced by the profiler, as '10:15'.
    provenance: Gives the configuration and versions that are recorded in the manifest.

  Raises:
    ValueError: if `mode`, `candidates`, a split, a type or a checkpoint is unknown, or naming the
      differences, if the directory holds tables of another origin.
    OSError: if the directory cannot be written to. Both are noticed before rows are answered. Also
      if an endpoint cannot be used, or the budget for it is spent.
  """
  if mode not in ('predict', 'score'):
    raise ValueError(f'mode is {mode!r}; it must be one of predict, score.')
  options = (
    dataclasses.asdict(decoding_options) if mode == 'predict' else {'candidates': candidates}
  )
  settings = {'mode': mode, 'decoding': options | {'max_tokens': data.lengths['targets']}}
  if endpoints.is_url(checkpoint.path):
    _check_settings(checkpoint, output, mode=mode, prompts=prompts, profile_steps=profile_steps)
    requests = endpoints.Requests(
      endpoints.parse(checkpoint.path),
      endpoint,
      decoding_options,
      max_tokens=data.lengths['targets'],
      alternatives=output.alternatives,
    )
    _ask(endpoint_answers.EndpointModel(requests), output, data, splits, settings, provenance)
    return
  if endpoint != endpoints.Endpoint():
    raise ValueError(
      'API, PARAMETERS, REQUEST and the other settings of an endpoint are for a URL, and '
      f'CHECKPOINT_PATH={checkpoint.path!r:.200} is none: leave them out, or write '
      'http://host:port/v1#model.'
    )
  profile = files.absolute(output.directory) / 'profile'
  with devices.use(), profiling.Profiler(profile, profile_steps) as profiler:
    model = trained_model.load(checkpoint, rules=devices.rules)
    if mode == 'predict':
      generator = answers.Generator(
        model, data.lengths['targets'], decoding_options, alternatives=output.alternatives
      )
      reader = answers.predictor(generator.answer, model.vocabulary, data.batch_size, profiler)
    else:
      scorer = answers.Scorer(model, alternatives=output.alternatives)
      reader = answers.scorer(scorer, data.batch_size, profiler, candidates)
    _answer(model, reader, prompts, output, data, splits, settings, provenance)


def _check_settings(
  checkpoint: trained_model.Checkpoint,
  output: Output,
  *,
  mode: rows.Mode,
  prompts: chats.PromptFormat | None,
  profile_steps: str | None,
) -> None:
  """Refuse settings of a checkpoint that an endpoint cannot honor."""
  alike = trained_model.Checkpoint(checkpoint.path)
  given = {
    'MODE=score': mode != 'predict',
    'PROMPTS': prompts is not None,
    'EMBEDDINGS': bool(output.embeddings),
    'MEMORY': checkpoint.memory.path is not None,
    'WHICH': checkpoint.which != alike.which,
    'PRECISION': checkpoint.precision != alike.precision,
    'WEIGHTS': checkpoint.weights != alike.weights,
    '--profile_steps': profile_steps is not None,
  }
  if refused := [name for name, is_given in given.items() if is_given]:
    raise ValueError(
      f'{", ".join(refused)}: for a checkpoint, and CHECKPOINT_PATH={checkpoint.path!r:.200} is '
      'the URL of an endpoint, which has a template and a precision of its own, and gives '
      'log-probabilities of no tokens but those that it writes: leave it out.'
    )
  if jax.distributed.is_initialized():
    raise ValueError('An endpoint is asked by one process: start infer without --multihost.')


def _answer(
  model: trained_model.TrainedModel,
  reader: answers.RowReader,
  prompts: chats.PromptFormat | None,
  output: Output,
  data: Data,
  splits: Sequence[str],
  settings: Mapping[str, Any],
  provenance: Callable[[], Mapping[str, str]],
) -> None:
  """Write the tables of a model of a checkpoint, and the arrays beside them."""
  companion_files = epath.Path(model.described['checkpoint']) / companions.FOLDER
  tables = []
  for task, task_splits in data.required_task.task_splits(splits):
    prompted = prompts(task, companion_files, model.architecture) if prompts else task
    corpus = data.corpus(model.vocabulary, model.architecture, task=prompted)
    described = {**model.described, 'definition': prompted.version, **settings}
    for split in task_splits:
      (records,) = corpus.open(split).per_task
      table = _begin(
        output, task, split, records, described, functools.partial(reader, corpus, records)
      )
      embed = functools.partial(
        features.write, table.directory, output.embeddings, model, corpus, records,
        mode=settings['mode'], batch_size=data.batch_size, lease=output.lease,
      )  # fmt: skip
      tables.append((table, embed))
  _write([(Pending.of(table), embed) for table, embed in tables], lambda _: provenance)


def _ask(
  model: endpoint_answers.EndpointModel,
  output: Output,
  data: Data,
  splits: Sequence[str],
  settings: Mapping[str, Any],
  provenance: Callable[[], Mapping[str, str]],
) -> None:
  """Write the tables of a model behind a URL. Its tokenizer is unknown: rows are read as bytes."""
  jax.config.update('jax_platforms', 'cpu')  # leaves accelerators to the programs that compute
  tables = []
  vocabulary = vocabularies.bytes_vocabulary()
  for task, task_splits in data.required_task.task_splits(splits):
    if task.joins_rows:
      raise ValueError(
        f'{task.name} joins texts to rows of tokens; an endpoint reads single texts.'
      )
    corpus = data.corpus(vocabulary, 'encoder_decoder', task=task)
    described = {**model.described, 'definition': task.version, **settings}
    for split in task_splits:
      (records,) = corpus.open(split).per_task
      answer = functools.partial(model.read, task, records)
      tables.append(_begin(output, task, split, records, described, answer))
  pending = [Pending.of(table, endpoint_answers.size, model.notes) for table in tables]
  counted = lambda table: functools.partial(endpoint_answers.manifest, table, provenance)
  with model:
    for table in tables:
      model.resume(table)
    _write([(table, lambda: None) for table in pending], counted, model.notes)


def _begin(
  output: Output,
  task: Task,
  split: str,
  records: Records,
  described: Mapping[str, Any],
  answer: Callable[[Sequence[int]], NumberedRows],
) -> PendingTable:
  """Begin the table of a split. `described` holds its model, the task's version and `settings`."""
  table = PendingTable(
    files.absolute(output.directory) / split,
    records,
    {
      **described,
      'task': task.name,
      'split': split,
      'metrics': answers.metric_names(task.metrics, described['decoding'].get('candidates')),
      'alternatives': output.alternatives,
    },
    output.shard_rows,
    answer,
    functools.partial(baselines.judge, task, split),
    output.lease,
  )
  if jax.process_index() == 0:
    table.begin(overwrite=output.overwrite, setting='INFER_OUTPUT_DIR')
  return table


class Pending(NamedTuple):
  """A table, the numbers of the rows of its missing shards, and the report of progress."""

  table: PendingTable
  missing: dict[int, range]
  existing: int  # shards
  report: progress.Counted[Any]

  @classmethod
  def of(
    cls,
    table: PendingTable,
    sizes: Callable[[Any], tuple[int, int]] = answers.size,
    notes: Callable[[], Sequence[str]] = tuple,
  ) -> Pending:
    missing = table.missing()
    unit = f'{table.described["task"]} {table.described["split"]} row'
    report = progress.Counted(unit, sum(map(len, missing.values())), sizes, notes)
    return cls(table, missing, table.shard_count - len(missing), report)


def _write(
  tables: Sequence[tuple[Pending, Callable[[], None]]],
  provenance: Callable[[PendingTable], Callable[[], Mapping[str, Any]]],
  notes: Callable[[], Sequence[str]] = tuple,
) -> None:
  """Write all tables, each with what lies beside it; last those that other programs work at."""
  for wait in (False, True):
    unfinished = []
    for pending, write_beside in tables:
      table, missing, existing, report = pending
      if not table.write(missing, provenance(table), report, wait=wait):
        unfinished.append((pending, write_beside))
        continue
      log.info(
        '%s, split %s: %d rows in %s (%d shards existed)%s',
        *(table.described['task'], table.described['split'], len(table.split), table.directory),
        *(existing, ''.join(f', {note}' for note in notes())),
      )
      write_beside()
    tables = unfinished


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.infer')
