"""Answer a task's splits with a trained model, and keep how sure it was of every token.

    python -m cascades.infer --gin_file=runs/infer.gin --gin.CHECKPOINT_PATH="'runs/demo/large'"
      --gin.MIXTURE_OR_TASK_NAME="'cmudict_g2p'" --gin.SPLITS="['validation', 'test']"

Leaves one table of predictions a split, INFER_OUTPUT_DIR/<split>/, as sharded JSON lines with a
manifest; of a mixture, one for each task beside each other, with the task's name. Mode `score` does
not answer: it gives the log-probabilities of the targets, or ranks the options. An interrupted run
goes on with the shards that are missing.
"""

from __future__ import annotations

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
from cascades.data import materialize
from cascades.data.corpus import Corpus
from cascades.data.records import Records
from cascades.inference import answers, trained_model
from cascades.interop import companions
from cascades.predictions import rows, shards
from cascades.runtime import files, partitioning, profiling, progress
from cascades.tasks import chats
from cascades.tasks.task import Mixture, Task

log = logging.getLogger(__name__)


def infer(
  checkpoint_path: str,
  infer_output_dir: str,
  *,
  task: Task | Mixture,
  task_feature_lengths: Mapping[str, int],
  splits: Sequence[str] = ('test',),
  mode: rows.Mode = 'predict',
  candidates: answers.Candidates = 'targets',
  which: store.Which = 'last',
  temperature: float = 0.0,
  top_k: int | None = None,
  top_p: float | None = None,
  seed: int = 0,
  prompts: chats.PromptFormat | None = None,
  precision: str = 'float32',
  weights: str | None = None,
  batch_size: int = 256,
  shard_rows: int = 4096,
  mesh: Callable[[], jax.sharding.Mesh] = partitioning.make_mesh,
  rules: partitioning.Rules = partitioning.RULES,
  records_dir: str = materialize.DIRECTORY,
  profile_steps: str | None = None,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Write the model's tables of `splits`; see the module.

  `prompts` changes how rows are asked: `chats.chat` puts the model's own chat template around each.
  Answers have at most `task_feature_lengths['targets']` tokens. `precision` is the type of the
  activations, and of the parameters unless `weights` says 'bfloat16' or 'int8' of those: thresholds
  on log-probabilities drift with it, so it is float32 unless asked otherwise, and both are in the
  manifest. Shards have about `shard_rows` rows.
  """
  read_out: dict[str, Callable[..., answers.RowReader]] = {
    'predict': answers.predictor,
    'score': answers.scorer,
  }
  if mode not in read_out:
    raise ValueError(f'mode is {mode!r}; it must be one of {", ".join(read_out)}.')
  how = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p, 'seed': seed}
  settings = (how if mode == 'predict' else {'candidates': candidates}) | {
    'max_tokens': task_feature_lengths['targets']
  }
  directory = files.absolute(infer_output_dir)
  with (
    partitioning.use(mesh(), rules),
    profiling.Profiler(directory / 'profile', profile_steps) as profiler,
  ):
    model = trained_model.load(
      checkpoint_path, which, rules=rules, precision=precision, weights=weights
    )
    answer = read_out[mode](model, batch_size, profiler, **settings)
    beside = store.locate(checkpoint_path, which)[0] / companions.FOLDER
    for one, task_splits in task.task_splits(splits):
      asked = prompts(one, beside) if prompts else one
      corpus = Corpus(
        asked, model.vocabulary, model.architecture, task_feature_lengths, records_dir
      )
      answer_one = functools.partial(answer, corpus)
      judges = answers.metric_names(one.metrics, candidates if mode == 'score' else None)
      for split in task_splits:
        described = {
          **model.described,
          'task': one.name,
          'definition': asked.version,
          'split': split,
          'mode': mode,
          'decoding': settings,
          'metrics': judges,
        }
        (part,) = corpus.open(split).per_task
        _write_table(directory / split, part, described, shard_rows, answer_one, provenance)


def _write_table(
  directory: epath.Path,
  split: Records,
  described: Mapping[str, Any],
  shard_rows: int,
  answer: Callable[[Records, Sequence[int]], Iterator[tuple[int, rows.JsonRow]]],
  provenance: Callable[[], Mapping[str, str]],
) -> None:
  """The shards that are missing, then the manifest."""
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
    unlabelled = split.manifest.unlabeled
    sizes = {'rows': total, 'shards': count, 'unlabelled': unlabelled}
    shards.write_manifest(directory, manifest | sizes)
  log.info(
    '%s, split %s: %d rows in %s (%d shards were there)',
    *(task, described['split'], total, directory, count - len(missing)),
  )


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.infer')
