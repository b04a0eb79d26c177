"""Conversion of tasks to and from SeqIO. Importing it loads TensorFlow, which takes seconds."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from cascades.tasks import tokenize
from cascades.tasks.task import Mixture, Row, Task, Vocabularies
from cascades.tokenizers import conventions, sentencepiece
from cascades.tokenizers import vocabularies as vocabularies_lib
from cascades.types import Vocabulary

tf.config.set_visible_devices([], 'GPU')  # leaves accelerators to JAX

_FINGERPRINTED_ROWS = 256
_NONE = -1  # for a missing number


def register_all(tasks: Iterable[Task | Mixture], vocabularies: Vocabularies) -> None:
  """Registers tasks and mixtures: `register_all(map(catalog.get, catalog.names()), ...)`."""
  for task in tasks:
    if isinstance(task, Mixture):
      register_mixture(task, vocabularies)
    else:
      register(task, vocabularies)


def register(task: Task, vocabularies: Vocabularies) -> seqio.Task:
  """Registers a task with SeqIO; a second call has no effect.

  Besides the fields of SeqIO's own tasks an example has `id`, `answers`, `options`, `label`,
  `group` and `template`; a missing value is -1 or ''. A task with its own tokenization, such as
  C4's chunks, has tokens without text.

  Args:
    task: the task.
    vocabularies: vocabularies of inputs and targets.

  Returns:
    The registered task.

  Raises:
    ValueError: if SeqIO has a task of this name with another vocabulary.
  """
  features = {
    'inputs': seqio.Feature(
      vocabulary(vocabularies.inputs), add_eos=task.special_tokens.prompt_end
    ),
    'targets': seqio.Feature(
      vocabulary(vocabularies.targets), add_eos=task.special_tokens.answer_end
    ),
  }
  if task.name not in names():
    seqio.TaskRegistry.add(
      task.name,
      source=seqio.FunctionDataSource(
        functools.partial(_dataset, task, vocabularies),
        splits=task.splits,
        num_input_examples={split: task.sizes.get(split) for split in task.splits},
      ),
      preprocessors=[
        *([] if task.tokenize else [seqio.preprocessors.tokenize]),
        seqio.CacheDatasetPlaceholder(),
        seqio.preprocessors.append_eos_after_trim,
      ],
      output_features=features,
    )
  registered = seqio.TaskRegistry.get(task.name)
  if dict(registered.output_features) != features:
    raise ValueError(
      f'SeqIO already has a task {task.name} with another vocabulary: use it, or rename yours.'
    )
  return registered


def register_mixture(
  mixture: Mixture, vocabularies: Vocabularies, *, rates: Mapping[str, float] | None = None
) -> seqio.Mixture:
  """Registers a mixture and its tasks with SeqIO; a second call has no effect.

  SeqIO's mixtures have inputs and targets only, unless other fields are `passthrough_features` of
  `get_dataset`.

  Args:
    mixture: the mixture.
    vocabularies: vocabularies of inputs and targets.
    rates: rates by task; other tasks have their own rate, or the number of their training rows,
      which are counted when SeqIO first asks.

  Returns:
    The registered mixture.

  Raises:
    ValueError: if SeqIO has a mixture of this name with other tasks or rates.
  """
  registered = [register(task, vocabularies) for task in mixture.tasks]
  fixed = {task.name: task.rate for task in mixture.tasks if task.rate} | dict(rates or {})
  if mixture.name not in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.add(
      mixture.name,
      [
        (task.name, fixed.get(task.name) or _training_rows(task, vocabularies))
        for task in mixture.tasks
      ],
    )
  existing = seqio.MixtureRegistry.get(mixture.name)
  rates = {name: rate for name, rate in existing.rate_per_task_name.items() if not callable(rate)}
  if set(existing.tasks) != set(registered) or rates != fixed:
    raise ValueError(
      f'SeqIO already has a mixture {mixture.name} of other tasks or rates: use it, or rename '
      'yours.'
    )
  return existing


def vocabulary(vocabulary: Vocabulary) -> seqio.Vocabulary:
  """Converts a vocabulary to SeqIO's with the same ids; ValueError if there is none."""
  match vocabulary:
    case vocabularies_lib.Bytes():
      return seqio.ByteVocabulary(vocabulary.extra_ids)
    case vocabularies_lib.Symbols():
      return SymbolVocabulary(vocabulary)
    case sentencepiece.SentencePiece(file=file, pad_id=0, eos_ids=(1,)) if file is not None:
      return seqio.SentencePieceVocabulary(str(file), vocabulary.extra_ids)
    case conventions.AbstractVocabulary():
      return CalledVocabulary(vocabulary)
  raise ValueError(f'SeqIO has no counterpart of a {type(vocabulary).__name__} vocabulary.')


class CalledVocabulary(seqio.Vocabulary):
  """A vocabulary inside TensorFlow, which calls Python for every text."""

  def __init__(self, wrapped: Vocabulary) -> None:
    super().__init__()
    self._wrapped = wrapped

  @property
  def pad_id(self) -> int:
    return self._wrapped.pad_id

  @property
  def bos_id(self) -> int | None:
    return self._wrapped.bos_id

  @property
  def eos_id(self) -> int:
    return self._wrapped.eos_id

  @property
  def unk_id(self) -> int | None:
    return getattr(self._wrapped, 'unk_id', None)

  @property
  def _base_vocab_size(self) -> int:
    return self._wrapped.size

  def _encode(self, s: str) -> Sequence[int]:
    return self._wrapped.encode(s)

  def _decode(self, ids: Sequence[int]) -> str:
    return self._wrapped.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    if s.shape.rank:
      return tf.map_fn(
        self._encode_tf, s, fn_output_signature=tf.RaggedTensorSpec([None], tf.int32)
      )
    encode = lambda text: np.array(self._wrapped.encode(_bytes(text).decode()), np.int32)
    return tf.ensure_shape(tf.numpy_function(encode, [s], tf.int32), [None])

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    if ids.shape.rank > 1:
      return tf.map_fn(self._decode_tf, ids, fn_output_signature=tf.string)
    decode = lambda ids: self._wrapped.decode(ids).encode()
    return tf.ensure_shape(tf.numpy_function(decode, [ids], tf.string), [])

  def __eq__(self, other: object) -> bool:
    return isinstance(other, CalledVocabulary) and self._wrapped == other._wrapped


class SymbolVocabulary(CalledVocabulary):
  """`vocabularies.Symbols` as a lookup table of TensorFlow."""

  def __init__(self, symbols: vocabularies_lib.Symbols) -> None:
    super().__init__(symbols)
    names_and_ids = tf.lookup.KeyValueTensorInitializer(
      tf.constant(symbols.names), tf.range(symbols.size - len(symbols.names), symbols.size)
    )
    self._ids = tf.lookup.StaticHashTable(names_and_ids, default_value=conventions.UNK_ID)
    self._names = tf.constant(['', '', '<unk>', *symbols.names])

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    return self._ids.lookup(tf.strings.split(s))

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    symbols = tf.ragged.boolean_mask(ids, ids > self.eos_id)
    return tf.strings.reduce_join(tf.gather(self._names, symbols), axis=-1, separator=' ')


def _bytes(text: bytes | np.ndarray) -> bytes:
  """TensorFlow hands over an array when it runs eagerly, and bytes in a graph."""
  return text if isinstance(text, bytes) else text.item()


def names() -> Sequence[str]:
  """Names of the tasks in SeqIO's registry."""
  return tuple(seqio.TaskRegistry.names())


def from_seqio(name: str, metrics: Sequence[str] = ('accuracy',)) -> Task:
  """Converts a task that is registered with SeqIO.

  Its rows are the text that it tokenizes, `inputs_pretokenized` and `targets_pretokenized`. Its
  fingerprint covers the source's files and the first rows as formatted, so that an edited
  preprocessor is noticed; an edit that does not change these rows needs another name.

  Args:
    name: name in SeqIO's registry.
    metrics: names in `cascades.metrics`.
  """
  task = seqio.TaskRegistry.get(name)
  return Task(
    name=name,
    splits=tuple(task.splits),
    read=functools.partial(_rows, task),
    fingerprint=functools.partial(_fingerprint, task),
    metrics=tuple(metrics),
    vocabulary=functools.partial(_vocabulary, task),
    description='a SeqIO task',
  )


def _training_rows(task: Task, vocabularies: Vocabularies) -> Callable[[seqio.Task], float]:
  return functools.cache(lambda _: float(sum(1 for _ in _examples(task, vocabularies, 'train'))))


def _dataset(
  task: Task,
  vocabularies: Vocabularies,
  split: str,
  shuffle_files: bool = False,
  seed: int | None = None,
) -> tf.data.Dataset:
  del shuffle_files, seed  # rows have one order; their reader shuffles
  strings = tf.TensorSpec([None], tf.string)
  string, number = tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)
  text = tf.TensorSpec([None], tf.int32) if task.tokenize else string
  return tf.data.Dataset.from_generator(
    lambda: _examples(task, vocabularies, split),
    output_signature={
      'id': string,
      'inputs': text,
      'targets': text,
      'answers': strings,
      'options': strings,
      'label': number,
      'group': string,
      'template': number,
    },
  )


def _examples(task: Task, vocabularies: Vocabularies, split: str) -> Iterator[dict[str, Any]]:
  if task.tokenize is None:
    yield from map(_features, task.rows(split))
    return
  # The same blocks as in token records, since random draws depend on them.
  for shard, rows in enumerate(tokenize.blocks(task.rows(split), tokenize.ROWS_PER_SHARD)):
    for record in task.tokenize(rows, vocabularies, shard):
      yield _features(record.row) | {'inputs': record.inputs, 'targets': record.targets}


def _features(row: Row) -> dict[str, Any]:
  return {
    'id': row.id,
    'inputs': row.inputs,
    'targets': row.targets,
    'answers': tf.constant(row.answers, tf.string, [len(row.answers)]),
    'options': tf.constant(row.options, tf.string, [len(row.options)]),
    'label': _NONE if row.label is None else row.label,
    'group': row.group or '',
    'template': _NONE if row.template is None else row.template,
  }


def _rows(task: seqio.Task, split: str) -> Iterator[Row]:
  dataset = task.get_dataset(
    sequence_length=None, split=split, shuffle=False, try_in_mem_cache=False
  )
  for number, example in enumerate(dataset.as_numpy_iterator()):
    targets = _text(task, example, 'targets')
    template = int(example.get('template', _NONE))
    yield Row(
      id=_plain(example.get('id', f'{task.name}/{split}/{number}')),
      inputs=_text(task, example, 'inputs'),
      answers=tuple(map(_plain, example.get('answers', [targets]))),
      options=tuple(map(_plain, example.get('options', ()))),
      label=int(example['label']) if len(example.get('options', ())) else None,
      group=_plain(example.get('group', '')) or None,
      template=None if template == _NONE else template,
    )


def _text(task: seqio.Task, example: Mapping[str, Any], field: str) -> str:
  if field not in example:  # a language model's task has no inputs
    return ''
  value = example.get(f'{field}_pretokenized', example[field])
  if not isinstance(value, bytes):
    raise ValueError(
      f'The SeqIO task {task.name} has no text of its {field}. Use its `tokenize` preprocessor '
      'with copy_pretokenized=True.'
    )
  return value.decode()


def _plain(value: Any) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def _fingerprint(task: seqio.Task, split: str) -> str:
  first_rows = list(itertools.islice(_rows(task, split), _FINGERPRINTED_ROWS))
  shards = task.source.list_shards(split)
  return hashlib.sha256(repr((seqio.__version__, shards, first_rows)).encode()).hexdigest()


def _vocabulary(task: seqio.Task) -> Vocabulary:
  registered = task.output_features['targets'].vocabulary
  match registered:
    case seqio.ByteVocabulary():
      return vocabularies_lib.bytes_vocabulary(registered.extra_ids)
    case seqio.SentencePieceVocabulary():
      return vocabularies_lib.sentencepiece(
        registered.sentencepiece_model_file, registered.extra_ids
      )
  raise ValueError(
    f'The SeqIO task {task.name} uses a {type(registered).__name__}, which cascades cannot '
    'convert: give a vocabulary.'
  )
