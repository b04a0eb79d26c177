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
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax import Array

from cascades import decoding, metrics
from cascades.checkpoints import store
from cascades.data import materialize
from cascades.data import prompts as prompting
from cascades.data.corpus import Corpus
from cascades.data.records import Records
from cascades.inference import trained_model
from cascades.interop import huggingface
from cascades.predictions import rows, shards
from cascades.runtime import files, partitioning, profiling, progress
from cascades.tasks import chats
from cascades.tasks.task import Mixture, Record, Task
from cascades.types import Batch, Generation, Params, Prompt

log = logging.getLogger(__name__)

# Rows of a table for rows of a task's split, in any order, each with its number.
Answer: TypeAlias = Callable[[Corpus, Records, Sequence[int]], Iterator[tuple[int, rows.Row]]]

CANDIDATES = {'targets': prompting.given_targets, 'options': prompting.given_options}
NORMALIZED = 'length_normalized_accuracy'
# What given answers are judged by, from the names of a task's metrics.
JUDGED: Mapping[Any, Callable[[Sequence[str]], list[str]]] = {
  None: list,
  'targets': lambda _: ['token_accuracy'],
  'options': lambda names: [*names, NORMALIZED],
}


class Candidate(NamedTuple):
  """A given answer under teacher forcing."""

  tokens: np.ndarray
  logprobs: np.ndarray
  correct: np.ndarray  # whether each token is the model's first choice


def infer(
  checkpoint_path: str,
  infer_output_dir: str,
  *,
  task: Task | Mixture,
  task_feature_lengths: Mapping[str, int],
  splits: Sequence[str] = ('test',),
  mode: rows.Mode = 'predict',
  candidates: Literal['targets', 'options'] = 'targets',
  which: store.Which = 'last',
  temperature: float = 0.0,
  top_k: int | None = None,
  top_p: float | None = None,
  seed: int = 0,
  prompts: chats.Form | None = None,
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
  read_out: dict[str, Callable[..., Answer]] = {'predict': _predictor, 'score': _scorer}
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
    beside = store.locate(checkpoint_path, which)[0] / huggingface.COMPANIONS
    for one in task.tasks if isinstance(task, Mixture) else (task,):
      asked = prompts(one, beside) if prompts else one
      corpus = Corpus(
        asked, model.vocabulary, model.architecture, task_feature_lengths, records_dir
      )
      answer_one = functools.partial(answer, corpus)
      judges = JUDGED[settings.get('candidates')](one.metrics)
      for split in (name for name in splits if task.has(one, name)):
        described = {
          **model.described,
          'task': one.name,
          'definition': asked.version,
          'split': split,
          'mode': mode,
          'decoding': settings,
          'metrics': judges,
        }
        (part,) = corpus.open(split).parts
        _write_table(directory / split, part, described, shard_rows, answer_one, provenance)


def _write_table(
  directory: epath.Path,
  split: Records,
  described: Mapping[str, Any],
  shard_rows: int,
  answer: Callable[[Records, Sequence[int]], Iterator[tuple[int, rows.Row]]],
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
    _size,
  )
  for index in missing:
    found = dict(report(answer(split, numbers[index])))
    if jax.process_index() == 0:
      ordered = [found[number] for number in numbers[index]]
      shards.write_shard(directory, task, mode, index, count, ordered, fingerprint=fingerprint)
  if jax.process_index() == 0:
    manifest = {'config': '', **provenance(), **described, 'fingerprint': fingerprint}
    unlabelled = split.manifest.unlabelled
    sizes = {'rows': total, 'shards': count, 'unlabelled': unlabelled}
    shards.write_manifest(directory, manifest | sizes)
  log.info(
    '%s, split %s: %d rows in %s (%d shards were there)',
    *(task, described['split'], total, directory, count - len(missing)),
  )


def _size(found: tuple[int, rows.Row]) -> tuple[int, int]:
  """How many rows, and tokens of them."""
  return 1, found[1]['aux']['length']


def _predictor(
  model: trained_model.Model,
  batch_size: int,
  profiler: profiling.Profiler,
  *,
  max_tokens: int,
  temperature: float,
  top_k: int | None,
  top_p: float | None,
  seed: int,
) -> Answer:
  """Answers by decoding, in batches of prompts of like length."""
  sampler: decoding.Sampler = decoding.greedy
  if temperature:
    sampler = functools.partial(decoding.sample, temperature=temperature, top_k=top_k, top_p=top_p)

  @jax.jit
  def generate(params: Params, prompt: Prompt, row_ids: Array) -> Generation:
    return decoding.generate(
      nnx.merge(model.graph, params),
      prompt,
      max_len=max_tokens,
      eos_id=model.vocabulary.eos_ids,
      sampler=sampler,
      key=jax.random.key(seed),
      row_ids=row_ids,
    )

  def answer(
    corpus: Corpus, split: Records, numbers: Sequence[int]
  ) -> Iterator[tuple[int, rows.Row]]:
    (task,) = corpus.tasks
    for count, bucket in enumerate(corpus.buckets(split, numbers, batch_size=batch_size), 1):
      prompt = corpus.prompts(split, bucket, batch_size=batch_size)
      # A row draws by its number, so its sample is the same in every batch.
      row_ids = np.resize(bucket.indices, batch_size).astype(np.int32)
      with profiler.step(count):
        placed = partitioning.place_whole((prompt, row_ids))
        generation = partitioning.fetch(generate(model.params, *placed))
      for number, record, tokens, logprobs, mask in zip(
        bucket.indices.tolist(), split.read(bucket.indices), *generation, strict=False
      ):
        text = model.vocabulary.decode(tokens[mask])
        yield (
          number,
          _row(
            record,
            answer=text,
            tokens=tokens[mask],
            logprobs=logprobs[mask],
            statistics=_judged(task.metrics, record, text),
          ),
        )

  return answer


def _scorer(
  model: trained_model.Model,
  batch_size: int,
  profiler: profiling.Profiler,
  *,
  candidates: Literal['targets', 'options'],
  max_tokens: int,
) -> Answer:
  """Scores what is given: a row's target, or each of its options, of which the best is chosen."""
  del max_tokens  # of the corpus
  if candidates not in CANDIDATES:
    raise ValueError(f'candidates is {candidates!r}; it must be one of {", ".join(CANDIDATES)}.')

  @jax.jit
  def score(params: Params, batch: Batch) -> tuple[Array, Array]:
    return decoding.score(nnx.merge(model.graph, params), batch)

  def scored(
    corpus: Corpus, split: Records, numbers: Sequence[int]
  ) -> Iterator[tuple[int, Candidate]]:
    batches = corpus.candidates(split, numbers, batch_size=batch_size, of=CANDIDATES[candidates])
    for count, (row_numbers, _, batch) in enumerate(batches, 1):
      with profiler.step(count):
        found = partitioning.fetch(score(model.params, partitioning.place_whole(batch)))
      for number, weights, *columns in zip(
        row_numbers.tolist(), batch.weights, batch.targets, *found, strict=False
      ):
        yield number, Candidate(*(column[weights > 0] for column in columns))

  def answer(
    corpus: Corpus, split: Records, numbers: Sequence[int]
  ) -> Iterator[tuple[int, rows.Row]]:
    (task,) = corpus.tasks
    found = scored(corpus, split, numbers)
    for number, group in itertools.groupby(found, key=lambda pair: pair[0]):
      (record,) = split.read([number])
      given = [candidate for _, candidate in group]
      yield number, ranked(task, record, given)

  def ranked(task: Task, record: Record, given: Sequence[Candidate]) -> rows.Row:
    totals = [float(candidate.logprobs.sum(dtype=np.float64)) for candidate in given]
    best = rows.best_option(totals)
    tokens, logprobs, correct = given[best]
    found: dict[str, Any] = {'statistics': {'token_accuracy': [correct.sum(), correct.size]}}
    if candidates == 'options':
      options, lengths = record.row.options, [len(candidate.tokens) for candidate in given]
      per_token = options[rows.best_option(totals, lengths)]
      statistics = _judged(task.metrics, record, options[best])
      statistics[NORMALIZED] = _judged(['accuracy'], record, per_token)['accuracy']
      found = {
        'statistics': statistics,
        'options': options,
        'option_scores': totals,
        'option_lengths': lengths,
      }
    return _row(
      record,
      answer=totals[best],
      tokens=tokens,
      logprobs=logprobs,
      correct=correct.tolist(),
      **found,
    )

  return answer


def _judged(names: Sequence[str], record: Record, text: str) -> dict[str, Any]:
  """Statistics of these metrics; zeros, which add nothing, for a row without label."""
  judges = [metrics.by_name(name) for name in names]
  if record.row.answers:
    return {judge.name: judge.statistics(record.row.answers, text) for judge in judges}
  return {judge.name: 0 * judge.statistics([''], '') for judge in judges}


def _row(record: Record, **found: Any) -> rows.Row:
  row = record.row
  return rows.build(
    id=row.id, inputs=row.inputs, targets=row.answers or ('',), group=row.group, **found
  )


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.infer')
