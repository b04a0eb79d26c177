"""Answer the splits of a task with a trained model, with the log-probability of every token.

    python -m cascades.infer --gin_file=runs/infer.gin --gin.CHECKPOINT_PATH="'runs/demo/large'"
      --gin.MIXTURE_OR_TASK_NAME="'cmudict_g2p'" --gin.SPLITS="['validation', 'test']"

Writes one table of predictions per split, INFER_OUTPUT_DIR/<split>/, as sharded JSON lines with a
manifest; a mixture has one table per task in the same directory. Mode `score` computes the
log-probabilities of the targets, or ranks the options, instead of decoding answers. Rerunning the
same command writes the shards that are missing.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from cascades.checkpoints import store
from cascades.data.corpus import Data
from cascades.data.records import Records
from cascades.inference import answers, trained_model
from cascades.interop import companions
from cascades.predictions import rows, shards
from cascades.runtime import files, partitioning, profiling, progress
from cascades.runtime.partitioning import Devices
from cascades.tasks import chats

log = logging.getLogger(__name__)


def infer(
  checkpoint: trained_model.Checkpoint,
  infer_output_dir: str,
  *,
  data: Data,
  splits: Sequence[str] = ('test',),
  mode: rows.Mode = 'predict',
  candidates: answers.Candidates = 'targets',
  prompts: chats.PromptFormat | None = None,
  decoding_options: answers.DecodingOptions = answers.DecodingOptions(),
  shard_rows: int = 4096,
  devices: Devices = Devices(),
  profile_steps: str | None = None,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Write a model's tables of predictions for the splits of a task.

  Args:
    checkpoint: The model. Both types of its numbers are recorded in the manifest.
    infer_output_dir: Directory of the tables, one a split and task.
    data: The rows. Answers have at most `lengths['targets']` tokens.
    splits: Names of splits; a task of a mixture that lacks one is left out.
    mode: 'predict' decodes answers; 'score' computes log-probabilities of given ones.
    candidates: Answers that are scored: a row's 'targets', or each of its 'options'.
    prompts: Changes the prompt of a row: `chats.chat` applies the model's own chat template.
    decoding_options: Temperature and seed of mode 'predict'.
    shard_rows: Approximate number of rows of a shard.
    devices: Mesh and sharding rules.
    profile_steps: Batches to be traced by the profiler, as '10:15'.
    provenance: Gives the configuration and versions that are recorded in the manifest.

  Raises:
    ValueError: if `mode`, `candidates`, a split, a type or a checkpoint is unknown.
  """
  if mode not in ('predict', 'score'):
    raise ValueError(f'mode is {mode!r}; it must be one of predict, score.')
  options = (
    dataclasses.asdict(decoding_options) if mode == 'predict' else {'candidates': candidates}
  )
  settings = options | {'max_tokens': data.lengths['targets']}
  directory = files.absolute(infer_output_dir)
  with (
    devices.use(),
    profiling.Profiler(directory / 'profile', profile_steps) as profiler,
  ):
    model = trained_model.load(checkpoint, rules=devices.rules)
    reader = (
      answers.predictor(
        answers.Generator(model, data.lengths['targets'], decoding_options),
        data.batch_size,
        profiler,
      )
      if mode == 'predict'
      else answers.scorer(answers.Scorer(model), data.batch_size, profiler, candidates)
    )
    companion_files = store.locate(checkpoint.path, checkpoint.which)[0] / companions.FOLDER
    for task, task_splits in data.required_task.task_splits(splits):
      prompted = prompts(task, companion_files, model.architecture) if prompts else task
      corpus = data.corpus(model.vocabulary, model.architecture, task=prompted)
      judges = answers.metric_names(task.metrics, candidates if mode == 'score' else None)
      for split in task_splits:
        described = {
          **model.described,
          'task': task.name,
          'definition': prompted.version,
          'split': split,
          'mode': mode,
          'decoding': settings,
          'metrics': judges,
        }
        (records,) = corpus.open(split).per_task
        _write_table(
          directory / split,
          records,
          described,
          shard_rows,
          functools.partial(reader, corpus),
          provenance,
        )


def _write_table(
  directory: epath.Path,
  split: Records,
  described: Mapping[str, Any],
  shard_rows: int,
  answer: Callable[[Records, Sequence[int]], Iterator[tuple[int, rows.JsonRow]]],
  provenance: Callable[[], Mapping[str, str]],
) -> None:
  """Write the shards that are missing, then the manifest."""
  task, mode, total = described['task'], described['mode'], len(split)
  count = -(-total // shard_rows)
  identity = json.dumps([described, split.directory.name], sort_keys=True)
  fingerprint = hashlib.sha256(identity.encode()).hexdigest()
  done = shards.completed_shards(directory, task, mode, count, total=total, fingerprint=fingerprint)
  # All must answer the same shards, and others may see another disk than the one that writes.
  missing = np.flatnonzero(
    partitioning.from_process_0(np.array([index not in done for index in range(count)]))
  ).tolist()
  numbers = {index: shards.shard_rows(total, index, count) for index in missing}
  report = progress.counted(
    f'{task} {described["split"]} row',
    sum(map(len, numbers.values())),
    answers.size,
  )
  for index in missing:
    answered = dict(report(answer(split, numbers[index])))
    if jax.process_index() == 0:
      ordered = [answered[number] for number in numbers[index]]
      shards.write_shard(directory, task, mode, index, count, ordered, fingerprint=fingerprint)
  if jax.process_index() == 0:
    manifest = {'config': '', **provenance(), **described, 'fingerprint': fingerprint}
    # The key keeps the spelling of older tables.
    sizes = {'rows': total, 'shards': count, 'unlabelled': split.manifest.unlabeled}
    shards.write_manifest(directory, manifest | sizes)
  log.info(
    '%s, split %s: %d rows in %s (%d shards existed)',
    *(task, described['split'], total, directory, count - len(missing)),
  )


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.infer')
