"""SeqIO as an independent implementation: its pipeline must give what our records hold."""

import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

from cascades.data import converters, materialize
from cascades.data.batches import evaluation_batches
from cascades.data.corpus import Corpus
from cascades.tasks import (
  c4,
  catalog,
  cmudict,
  local,
  preparing,
  seqio_tasks,
  sources,
  superglue,
  tokenize,
)
from cascades.tasks.flan import suite as flan
from cascades.tasks.task import Mixture, Row, both
from cascades.tokenizers import train_sentencepiece, vocabularies
from tests.tokenizers.huggingface_test import byte_level

LENGTHS = {'inputs': 40, 'targets': 8}


@pytest.fixture(autouse=True)
def empty_registry():
  """SeqIO's registries as they were, so that tests do not meet in them."""
  registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
  before = [set(registry.names()) for registry in registries]
  yield
  for registry, names in zip(registries, before, strict=True):
    for name in set(registry.names()) - names:
      registry.remove(name)


@pytest.fixture(scope='module')
def model(tmp_path_factory, hand_written):
  texts = [row.inputs for row in superglue_rows('boolq', hand_written)] * 4
  path = tmp_path_factory.mktemp('model') / 'tiny.model'
  train_sentencepiece.train_sentencepiece(texts, path, size=400)
  return path


def superglue_rows(config, folder, split='train'):
  return superglue.task(config, sources.Sources(folder)).rows(split)


@pytest.fixture
def lines(tmp_path):
  rows = [
    {'inputs': 'two  spaces\nand a line', 'targets': 'oui'},
    {'inputs': 'Привет <extra_id_0> мир', 'targets': ['日本', 'x']},
    {'inputs': '', 'targets': ' lead', 'options': [' lead', 'b']},
    {'inputs': 'long ' * 30, 'targets': 'long ' * 30},
  ]
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return local.local_jsonl('lines', {'train': path})


def theirs(task, vocabulary, split, lengths):
  registered = seqio_tasks.register(task, both(vocabulary))
  dataset = registered.get_dataset(
    sequence_length=lengths, split=split, shuffle=False, try_in_mem_cache=False
  )
  return dataset.as_numpy_iterator()


def compare(task, vocabulary, split, folder, count=200):
  """Tokens of our records, ended and trimmed, against SeqIO's own output, row by row."""
  made = materialize.materialize(task, split, both(vocabulary), folder)
  layout = converters.feature_converter(made, converters.encoder_decoder, LENGTHS)
  examples = itertools.islice(theirs(task, vocabulary, split, LENGTHS), count)
  compared = 0
  for index, example in enumerate(examples):
    (record,) = made.read([index])
    laid_out = layout.example(record.inputs, record.targets)
    assert np.concatenate(laid_out.encoder).tolist() == example['inputs'].tolist()
    assert np.concatenate(laid_out.targets).tolist() == example['targets'].tolist()
    assert record.row.inputs == example['inputs_pretokenized'].decode()
    assert record.row.id == example['id'].decode()
    compared += 1
  assert compared == min(count, len(made))


@pytest.fixture
def short_dictionary(monkeypatch):
  """The dictionary's first words, as TensorFlow is slow to start and to read."""
  text = '\n'.join(cmudict._text().split('\n')[:3000])
  monkeypatch.setattr(cmudict, '_text', lambda: text)


@pytest.mark.parametrize('kind', ['symbols', 'bytes', 'sentencepiece'])
def test_seqio_tokenizes_the_dictionary_as_our_records(tmp_path, short_dictionary, model, kind):
  vocabulary = {
    'symbols': cmudict.vocabulary,
    'bytes': vocabularies.bytes_vocabulary,
    'sentencepiece': lambda: vocabularies.sentencepiece(model),
  }[kind]()
  compare(cmudict.task(), vocabulary, 'validation', tmp_path)


@pytest.mark.parametrize('kind', ['symbols', 'bytes', 'sentencepiece'])
def test_seqio_tokenizes_json_lines_as_our_records(tmp_path, lines, model, kind):
  vocabulary = {
    'symbols': lambda: vocabularies.symbols(['two', 'spaces', 'мир', '日本']),
    'bytes': lambda: vocabularies.bytes_vocabulary(extra_ids=3),
    'sentencepiece': lambda: vocabularies.sentencepiece(model),
  }[kind]()
  compare(lines, vocabulary, 'train', tmp_path)


@pytest.mark.parametrize('kind', ['bytes', 'sentencepiece'])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_seqio_tokenizes_boolq_as_our_records(tmp_path, hand_written, model, kind, split):
  vocabulary = {
    'bytes': vocabularies.bytes_vocabulary,
    'sentencepiece': lambda: vocabularies.sentencepiece(model),
  }[kind]()
  compare(superglue.boolq(str(hand_written)), vocabulary, split, tmp_path)


@pytest.mark.parametrize('text', ['', 'a b', 'two  spaces\n', 'Привет', '日本\u2028語', '\x00'])
def test_vocabularies_agree_inside_and_outside_tensorflow(model, text):
  for ours in (
    vocabularies.bytes_vocabulary(5),
    vocabularies.symbols(['a', 'b', 'two']),
    vocabularies.sentencepiece(model),
  ):
    theirs = seqio_tasks.vocabulary(ours)
    ids = ours.encode(text)
    assert list(theirs.encode(text)) == theirs.encode_tf(tf.constant(text)).numpy().tolist() == ids
    assert theirs.decode(ids) == ours.decode(ids)
    assert (theirs.vocab_size, theirs.eos_id, theirs.pad_id) == (ours.size, 1, 0)


@pytest.mark.parametrize('text', ['', 'two  spaces\n', 'Привет', '日本\u2028語'])
def test_other_tokenizers_are_called_from_tensorflow(tmp_path, text):
  byte_level().save(str(tmp_path / 'tokenizer.json'))
  ours = vocabularies.huggingface(tmp_path, pad='<pad>', eos=('</s>', '<|end|>'))
  theirs = seqio_tasks.vocabulary(ours)
  ids = ours.encode(text)
  both_texts = theirs.encode_tf(tf.constant([text, 'two'])).to_list()
  assert list(theirs.encode(text)) == theirs.encode_tf(tf.constant(text)).numpy().tolist() == ids
  assert both_texts == [ids, ours.encode('two')]
  mapped = tf.data.Dataset.from_tensor_slices([text, text]).map(theirs.encode_tf)
  assert [found.tolist() for found in mapped.as_numpy_iterator()] == [ids, ids]
  decoded = tf.data.Dataset.from_tensors(tf.constant([*ids, 2], tf.int32)).map(theirs.decode_tf)
  assert next(decoded.as_numpy_iterator()).decode() == text
  assert theirs.decode_tf(tf.constant([*ids, 2, 9], tf.int32)).numpy().decode() == text
  assert (theirs.vocab_size, theirs.eos_id, theirs.pad_id) == (ours.size, 2, 3)


def test_symbols_decode_inside_tensorflow():
  theirs = seqio_tasks.vocabulary(vocabularies.symbols(['a', 'b']))
  decoded = theirs.decode_tf(tf.constant([[3, 2, 4, 1, 3], [0, 0, 1, 0, 0]]))
  assert [text.decode() for text in decoded.numpy()] == ['a <unk> b', '']


def test_a_vocabulary_without_a_counterpart_is_named():
  with pytest.raises(ValueError, match='no counterpart of a object'):
    seqio_tasks.vocabulary(object())


def converted(task, vocabulary, converter, features, split='train'):
  """The batches of a SeqIO feature converter, as one dictionary of arrays."""
  registered = seqio_tasks.register(task, both(vocabulary))
  dataset = converter(
    registered.get_dataset(
      sequence_length=LENGTHS, split=split, shuffle=False, try_in_mem_cache=False
    ),
    task_feature_lengths=features,
  )
  rows = list(dataset.as_numpy_iterator())
  return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def ours(task, vocabulary, convert, folder):
  made = materialize.materialize(task, 'train', both(vocabulary), folder)
  batches = evaluation_batches(made, convert=convert, lengths=LENGTHS, batch_size=len(made))
  return next(batches)


def test_an_encoder_decoder_batch_equals_seqios_converter(tmp_path, hand_written):
  task, vocabulary = superglue.rte(str(hand_written)), vocabularies.bytes_vocabulary()
  found = ours(task, vocabulary, converters.encoder_decoder, tmp_path)
  expected = converted(task, vocabulary, seqio.EncDecFeatureConverter(pack=False), LENGTHS)
  np.testing.assert_array_equal(found.encoder, expected['encoder_input_tokens'])
  np.testing.assert_array_equal(found.inputs, expected['decoder_input_tokens'])
  np.testing.assert_array_equal(found.targets, expected['decoder_target_tokens'])
  np.testing.assert_array_equal(found.weights, expected['decoder_loss_weights'])


def test_a_decoder_only_batch_equals_seqios_prefix_converter(tmp_path, hand_written):
  task, vocabulary = superglue.rte(str(hand_written)), vocabularies.bytes_vocabulary()
  found = ours(task, vocabulary, converters.decoder_only, tmp_path)
  expected = converted(task, vocabulary, seqio.PrefixLMFeatureConverter(pack=False), LENGTHS)
  np.testing.assert_array_equal(found.targets, expected['decoder_target_tokens'])
  np.testing.assert_array_equal(found.weights, expected['decoder_loss_weights'])
  used = expected['decoder_target_tokens'] > 0
  np.testing.assert_array_equal(found.inputs[used], expected['decoder_input_tokens'][used])


def test_registering_twice_gives_the_same_task(lines):
  vocabulary = both(vocabularies.bytes_vocabulary())
  assert seqio_tasks.register(lines, vocabulary) is seqio_tasks.register(lines, vocabulary)


def test_registering_with_another_vocabulary_is_an_error(lines):
  seqio_tasks.register(lines, both(vocabularies.bytes_vocabulary()))
  with pytest.raises(ValueError, match='already has a task lines with another vocabulary'):
    seqio_tasks.register(lines, both(vocabularies.symbols(['a'])))


def test_seqio_sees_answers_options_and_labels(lines):
  examples = list(theirs(lines, vocabularies.bytes_vocabulary(), 'train', None))
  assert [list(e['answers']) for e in examples[:2]] == [[b'oui'], ['日本'.encode(), b'x']]
  assert list(examples[2]['options']) == [b' lead', b'b']
  assert [int(e['label']) for e in examples] == [-1, -1, 0, -1]


def tiny_mixture(hand_written):
  where = sources.Sources(hand_written)
  boolq, rte = (superglue.task(config, where) for config in ('boolq', 'rte'))
  return Mixture('tiny_mixture', (boolq, dataclasses.replace(rte, rate=7)))


def mixed(registered, **options):
  dataset = registered.get_dataset(
    LENGTHS, split='train', shuffle=False, num_epochs=1, try_in_mem_cache=False, **options
  )
  return list(dataset.as_numpy_iterator())


def test_a_mixture_has_our_rates_or_else_counts_rows(hand_written):
  ours, vocabulary = tiny_mixture(hand_written), both(vocabularies.bytes_vocabulary())
  registered = seqio_tasks.register_mixture(ours, vocabulary)
  count = len(list(ours.tasks[0].rows('train')))
  assert [registered.get_rate(seqio.TaskRegistry.get(t.name)) for t in ours.tasks] == [count, 7]
  assert seqio_tasks.register_mixture(ours, vocabulary) is registered


def test_a_mixtures_rates_may_be_given_instead(hand_written):
  registered = seqio_tasks.register_mixture(
    tiny_mixture(hand_written), both(vocabularies.bytes_vocabulary()), rates={'superglue_rte': 0.5}
  )
  assert registered.get_rate(seqio.TaskRegistry.get('superglue_rte')) == 0.5


def test_a_mixture_keeps_what_is_named_beside_inputs_and_targets(hand_written):
  registered = seqio_tasks.register_mixture(
    tiny_mixture(hand_written), both(vocabularies.bytes_vocabulary())
  )
  kept = {frozenset(example) for example in mixed(registered)}
  assert kept == {frozenset({'inputs', 'targets'})}
  examples = mixed(registered, passthrough_features=['id', 'answers', 'template'])
  assert {name for example in examples for name in example} == {
    'inputs', 'targets', 'id', 'answers', 'template',
  }  # fmt: skip
  assert {example['id'].decode().split('/')[0] for example in examples} == {'boolq', 'rte'}


def test_a_mixture_of_other_tasks_or_rates_with_the_same_name_is_an_error(hand_written):
  ours, vocabulary = tiny_mixture(hand_written), both(vocabularies.bytes_vocabulary())
  seqio_tasks.register_mixture(ours, vocabulary)
  other = dataclasses.replace(ours, tasks=ours.tasks[:1])
  for mixture, rates in ((other, {}), (ours, {'superglue_rte': 8})):
    with pytest.raises(ValueError, match='already has a mixture tiny_mixture of other tasks or'):
      seqio_tasks.register_mixture(mixture, vocabulary, rates=rates)


def test_everything_of_the_catalogue_registers_without_data(tmp_path):
  vocabulary = both(vocabularies.bytes_vocabulary(100))
  names = [*catalog.tasks(), *catalog.mixtures()]
  missing = functools.partial(catalog.get, data_dir=str(tmp_path), tfds_data_dir=str(tmp_path))
  for _ in range(2):
    seqio_tasks.register_all(map(missing, names), vocabulary)
  assert set(catalog.tasks()) <= set(seqio.TaskRegistry.names())
  assert set(catalog.mixtures()) <= set(seqio.MixtureRegistry.names())
  assert seqio.MixtureRegistry.get(flan.MIXTURE).total_rate == 188_371
  with pytest.raises(FileNotFoundError, match='No rows for split train of wmt22_en_zh'):
    assert seqio.MixtureRegistry.get('wmt22').total_rate  # its rows have to be counted


def test_a_mixture_is_drawn_from_as_ours_is(tmp_path, hand_written):
  ours, vocabulary = tiny_mixture(hand_written), vocabularies.bytes_vocabulary()
  lengths = {'inputs': 400, 'targets': 20}
  corpus = Corpus(ours, vocabulary, 'encoder_decoder', lengths, str(tmp_path))
  batch = next(corpus.training(0, batch_size=64, seed=0))
  registered = seqio_tasks.register_mixture(ours, both(vocabulary))
  converter = seqio.EncDecFeatureConverter(pack=False)
  dataset = converter(
    registered.get_dataset(lengths, split='train', shuffle=False, try_in_mem_cache=False), lengths
  )
  theirs = {
    (*row['encoder_input_tokens'], *row['decoder_target_tokens'])
    for row in dataset.take(64).as_numpy_iterator()
  }
  pairs = zip(batch.encoder.tolist(), batch.targets.tolist(), strict=True)
  assert {(*inputs, *targets) for inputs, targets in pairs} == theirs


@pytest.mark.parametrize('kind', ['span_corruption', 'prefix_lm', 'causal_lm'])
def test_chunks_of_c4_come_as_the_tokens_of_our_records(tmp_path, monkeypatch, kind):
  monkeypatch.setattr(tokenize, 'ROWS_PER_SHARD', 3)
  vocabulary = vocabularies.bytes_vocabulary(100)
  task = getattr(c4, kind)(sources.Sources(sample=True))
  made = materialize.materialize(task, 'train', both(vocabulary), tmp_path, rows_per_shard=3)
  assert len(made.manifest.shards) > 1
  end = [vocabulary.eos_id] if task.special_tokens.answer_end else []
  examples = list(theirs(task, vocabulary, 'train', None))
  for record, example in zip(made.read(range(len(made))), examples, strict=True):
    assert example['id'].decode() == record.row.id
    assert example['inputs'].tolist() == [*record.inputs, *end]
    assert example['targets'].tolist() == [*record.targets, *end]
  assert 'inputs_pretokenized' not in examples[0]


def test_tokens_without_text_do_not_come_back_as_text():
  task = c4.causal_lm(sources.Sources(sample=True))
  seqio_tasks.register(task, both(vocabularies.bytes_vocabulary()))
  with pytest.raises(ValueError, match='c4_causal_lm has no text of its targets'):
    next(seqio_tasks.from_seqio(task.name).rows('train'))


def prefixed(dataset, prefix):
  return dataset.map(lambda e: {k: tf.strings.join([prefix, v]) for k, v in e.items()})


def user_task(name, prefix='say ', vocabulary=None, features=('inputs', 'targets')):
  """A task as a user's module would register it."""
  columns = {feature: [f'{feature} {i}' for i in range(2)] for feature in features}
  read = lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(columns)
  return seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(read, splits=['train']),
    preprocessors=[
      functools.partial(prefixed, prefix=prefix),
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos,
    ],
    output_features={
      feature: seqio.Feature(vocabulary or seqio.ByteVocabulary()) for feature in features
    },
  )


def test_a_users_seqio_task_is_found_by_name_and_materialized(tmp_path):
  user_task('their_task')
  task = catalog.get('their_task')
  assert list(task.rows('train')) == [
    Row('their_task/train/0', 'say inputs 0', ('say targets 0',)),
    Row('their_task/train/1', 'say inputs 1', ('say targets 1',)),
  ]
  assert len(materialize.materialize(task, 'train', both(task.vocabulary()), tmp_path)) == 2


def test_an_edited_preprocessor_changes_the_fingerprint():
  user_task('their_task')
  before = catalog.get('their_task').fingerprint('train')
  assert catalog.get('their_task').fingerprint('train') == before
  seqio.TaskRegistry.remove('their_task')
  user_task('their_task', prefix='tell ')
  assert catalog.get('their_task').fingerprint('train') != before


def test_a_language_model_task_has_empty_inputs():
  user_task('lm', features=('targets',))
  assert [row.inputs for row in catalog.get('lm').rows('train')] == ['', '']


def test_our_own_rows_survive_the_way_through_seqio(hand_written, model):
  task = superglue.rte(str(hand_written))
  seqio_tasks.register(task, both(vocabularies.sentencepiece(model)))
  back = seqio_tasks.from_seqio(task.name)
  for split in ('train', 'test'):
    found, expected = list(back.rows(split)), list(task.rows(split))
    assert [row._replace(answers=row.answers or ()) for row in found] == expected
  assert back.vocabulary() == vocabularies.sentencepiece(model)


@pytest.mark.parametrize('name', ['flan_multirc', 'flan_rte', 'superglue_record', 'wmt22_en_ja'])
def test_groups_templates_and_unlabeled_rows_survive_the_way_through_seqio(name):
  task = catalog.get(name, sample=True)
  seqio_tasks.register(task, both(vocabularies.bytes_vocabulary()))
  for split in task.splits:
    expected = list(task.rows(split))
    assert list(seqio_tasks.from_seqio(name).rows(split)) == expected


def test_a_vocabulary_that_we_lack_is_named():
  user_task('odd', vocabulary=seqio.PassThroughVocabulary(10))
  with pytest.raises(ValueError, match='odd uses a PassThroughVocabulary'):
    catalog.get('odd').vocabulary()


def test_seqios_own_source_reads_a_directory_that_we_prepare(tmp_path, hand_written):
  task = superglue.boolq(str(hand_written))
  counts = preparing.prepare(task.origin, tmp_path)
  source = seqio.TfdsDataSource('super_glue/boolq:1.0.2', tfds_data_dir=str(tmp_path))
  assert {split: source.num_input_examples(split) for split in source.splits} == counts
  found = source.get_dataset('train', shuffle=True, seed=0).as_numpy_iterator()
  passages = sorted(example['passage'].decode() for example in found)
  assert passages == sorted(example['passage'] for example in task.origin.examples('train'))


def test_seqio_tokenizes_real_passages_as_our_records(tmp_path, real_data, model):
  for vocabulary in (vocabularies.bytes_vocabulary(), vocabularies.sentencepiece(model)):
    task = superglue.boolq(str(real_data))
    compare(task, vocabulary, 'validation', tmp_path, count=50)
    seqio.TaskRegistry.remove(task.name)
