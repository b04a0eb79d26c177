"""The bridge to SeqIO, both ways. Importing it loads TensorFlow, which takes seconds."""

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
_NONE = -1  # for a number that a row has not


def register_all(found: Iterable[Task | Mixture], vocabularies: Vocabularies) -> None:
  """Each of these: `register_all(map(catalog.get, catalog.names()), vocabularies)`."""
  for one in found:
    if isinstance(one, Mixture):
      register_mixture(one, vocabularies)
    else:
      register(one, vocabularies)


def register(task: Task, vocabularies: Vocabularies) -> seqio.Task:
  """Our task as a `seqio.Task` in SeqIO's registry; once, however often it is called.

  Beside the fields of SeqIO's own tasks an example has `id`, `answers`, `options`, `label`, `group`
  and `template`; what a row has not is -1 or ''. A task that makes its tokens in a way of its own,
  as C4's chunks are, has them without the text.
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
  """Our mixture and its tasks in SeqIO's registries; once, however often it is called.

  A task that `rates` does not name has its own rate, or else the number of its training rows,
  which are counted when SeqIO first asks. A mixture of SeqIO keeps inputs and targets alone, unless
  `get_dataset` is told of others as `passthrough_features`; all our tasks have the same.
  """
  registered = [register(task, vocabularies) for task in mixture.tasks]
  known = {task.name: task.rate for task in mixture.tasks if task.rate} | dict(rates or {})
  if mixture.name not in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.add(
      mixture.name,
      [
        (task.name, known.get(task.name) or _training_rows(task, vocabularies))
        for task in mixture.tasks
      ],
    )
  found = seqio.MixtureRegistry.get(mixture.name)
  told = {name: rate for name, rate in found.rate_per_task_name.items() if not callable(rate)}
  if set(found.tasks) != set(registered) or told != known:
    raise ValueError(
      f'SeqIO already has a mixture {mixture.name} of other tasks or rates: use it, or rename '
      'yours.'
    )
  return found


def vocabulary(ours: Vocabulary) -> seqio.Vocabulary:
  """The SeqIO vocabulary with the same ids."""
  match ours:
    case vocabularies_lib.Bytes():
      return seqio.ByteVocabulary(ours.extra_ids)
    case vocabularies_lib.Symbols():
      return SymbolVocabulary(ours)
    case sentencepiece.SentencePiece(file=file, pad_id=0, eos_ids=(1,)) if file is not None:
      return seqio.SentencePieceVocabulary(str(file), ours.extra_ids)
    case conventions.AbstractVocabulary():
      return CalledVocabulary(ours)
  raise ValueError(f'SeqIO has no counterpart of a {type(ours).__name__} vocabulary.')


class CalledVocabulary(seqio.Vocabulary):
  """Any of ours inside TensorFlow, which calls Python for every text."""

  def __init__(self, ours: Vocabulary) -> None:
    super().__init__()
    self._ours = ours

  @property
  def pad_id(self) -> int:
    return self._ours.pad_id

  @property
  def bos_id(self) -> int | None:
    return self._ours.bos_id

  @property
  def eos_id(self) -> int:
    return self._ours.eos_id

  @property
  def unk_id(self) -> int | None:
    return getattr(self._ours, 'unk_id', None)

  @property
  def _base_vocab_size(self) -> int:
    return self._ours.size

  def _encode(self, s: str) -> Sequence[int]:
    return self._ours.encode(s)

  def _decode(self, ids: Sequence[int]) -> str:
    return self._ours.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    if s.shape.rank:
      return tf.map_fn(
        self._encode_tf, s, fn_output_signature=tf.RaggedTensorSpec([None], tf.int32)
      )
    encode = lambda text: np.array(self._ours.encode(_bytes(text).decode()), np.int32)
    return tf.ensure_shape(tf.numpy_function(encode, [s], tf.int32), [None])

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    if ids.shape.rank > 1:
      return tf.map_fn(self._decode_tf, ids, fn_output_signature=tf.string)
    decode = lambda ids: self._ours.decode(ids).encode()
    return tf.ensure_shape(tf.numpy_function(decode, [ids], tf.string), [])

  def __eq__(self, other: object) -> bool:
    return isinstance(other, CalledVocabulary) and self._ours == other._ours


class SymbolVocabulary(CalledVocabulary):
  """`vocabularies.Symbols`, which TensorFlow can look up by itself."""

  def __init__(self, ours: vocabularies_lib.Symbols) -> None:
    super().__init__(ours)
    names_and_ids = tf.lookup.KeyValueTensorInitializer(
      tf.constant(ours.names), tf.range(ours.size - len(ours.names), ours.size)
    )
    self._ids = tf.lookup.StaticHashTable(names_and_ids, default_value=conventions.UNK_ID)
    self._names = tf.constant(['', '', '<unk>', *ours.names])

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    return self._ids.lookup(tf.strings.split(s))

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    kept = tf.ragged.boolean_mask(ids, ids > self.eos_id)
    return tf.strings.reduce_join(tf.gather(self._names, kept), axis=-1, separator=' ')


def _bytes(text: bytes | np.ndarray) -> bytes:
  """TensorFlow hands over an array when it runs eagerly, and bytes in a graph."""
  return text if isinstance(text, bytes) else text.item()


def names() -> Sequence[str]:
  """The tasks in SeqIO's registry."""
  return tuple(seqio.TaskRegistry.names())


def from_seqio(name: str, metrics: Sequence[str] = ('accuracy',)) -> Task:
  """A task that a user registered with SeqIO, as one of ours, judged by our metrics.

  Its rows are the text that it tokenises, `inputs_pretokenized` and `targets_pretokenized`. Its
  fingerprint covers the source's files and the first rows as formatted, so that an edited
  preprocessor is noticed; a change that spares them calls for another name.
  """
  task = seqio.TaskRegistry.get(name)
  return Task(
    name=name,
    splits=tuple(task.splits),
    read=functools.partial(_rows, task),
    fingerprint=functools.partial(_fingerprint, task),
    metrics=tuple(metrics),
    vocabulary=functools.partial(_our_vocabulary, task),
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
  del shuffle_files, seed  # rows have one order; shuffling is for whoever reads them
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
  # The same blocks as in token records, since what is drawn at random depends on them.
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
  if field not in example:  # a language-modelling task has no inputs
    return ''
  value = example.get(f'{field}_pretokenized', example[field])
  if not isinstance(value, bytes):
    raise ValueError(
      f'The SeqIO task {task.name} keeps no text of its {field}. Let its `tokenize` preprocessor '
      'keep copy_pretokenized=True.'
    )
  return value.decode()


def _plain(value: Any) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def _fingerprint(task: seqio.Task, split: str) -> str:
  first_rows = list(itertools.islice(_rows(task, split), _FINGERPRINTED_ROWS))
  shards = task.source.list_shards(split)
  return hashlib.sha256(repr((seqio.__version__, shards, first_rows)).encode()).hexdigest()


def _our_vocabulary(task: seqio.Task) -> Vocabulary:
  theirs = task.output_features['targets'].vocabulary
  match theirs:
    case seqio.ByteVocabulary():
      return vocabularies_lib.bytes_vocabulary(theirs.extra_ids)
    case seqio.SentencePieceVocabulary():
      return vocabularies_lib.sentencepiece(theirs.sentencepiece_model_file, theirs.extra_ids)
  raise ValueError(
    f'The SeqIO task {task.name} uses a {type(theirs).__name__}, of which we have no counterpart: '
    'name a vocabulary.'
  )
