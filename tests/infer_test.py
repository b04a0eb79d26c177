"""The inference program: what it writes, that it agrees with the model, and how it resumes."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cascades import decoding
from cascades.checkpoints import store
from cascades.data import converters
from cascades.data.corpus import Corpus
from cascades.inference import answers, features
from cascades.models import configs
from cascades.predictions import shards as predictions
from cascades.predictions import sidecars
from cascades.runtime import partitioning
from cascades.tasks.task import Row, Task
from cascades.types import Batch, Prompt
from tests import tiny


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  directory = tmp_path_factory.mktemp('trained')
  tiny.train(**tiny.settings(directory, train_steps=100, save_every=100))
  return directory


def settings(trained, output, **changes):
  return {
    'checkpoint_path': str(trained / 'run'),
    'infer_output_dir': str(output),
    'task': tiny.task(trained),
    'task_feature_lengths': tiny.LENGTHS,
    'batch_size': 8,
    'shard_rows': 10,
    'mesh': tiny.one_device,
    'records_dir': str(trained / 'records'),
  } | changes


def run(trained, output, **changes):
  tiny.infer(**settings(trained, output, **changes))
  mode = changes.get('mode', 'predict')
  (table,) = predictions.read(output / 'test', mode=mode)
  return table


@pytest.fixture(scope='module')
def answered(trained, tmp_path_factory):
  output = tmp_path_factory.mktemp('answered')
  return output, run(trained, output)


def raw_rows(directory, mode='predict'):
  shards = sorted(directory.glob(f'*-{mode}.jsonl-*'))
  shards = [path for path in shards if not path.name.endswith('.COMPLETED')]
  return [json.loads(line) for path in shards for line in path.read_text().splitlines()]


def test_every_row_is_answered_once_and_in_order(answered):
  output, table = answered
  assert list(table.ids) == [f'test-{number}' for number in range(32)]
  assert table.column('generated_tokens').tolist() == table.lengths.tolist()
  assert sorted(path.name for path in (output / 'test').iterdir()) == sorted(
    [f'backwards-predict.jsonl-{i:05d}-of-00004' for i in range(4)]
    + [f'backwards-predict.jsonl-{i:05d}-of-00004.COMPLETED' for i in range(4)]
    + ['backwards-predict.manifest.json']
  )


def test_the_manifest_names_model_settings_and_metrics(answered, trained):
  _, table = answered
  manifest = table.manifest
  params = jax.tree.leaves(tiny.SMALL.build(jax.random.key(0)))
  assert manifest['parameters'] == sum(leaf.size for leaf in params)
  assert manifest['flops_per_token'] == 2 * manifest['parameters']
  assert manifest['checkpoint'] == str(trained / 'run')
  assert (manifest['step'], manifest['precision'], manifest['rows']) == (100, 'float32', 32)
  assert manifest['vocabulary'] == tiny.VOCABULARY.fingerprint
  assert manifest['decoding'] == {
    'temperature': 0.0, 'top_k': None, 'top_p': None, 'seed': 0, 'max_tokens': 8
  }  # fmt: skip
  assert manifest['metrics'] == ['accuracy']


def model_of(trained):
  description = store.read_description(trained / 'run')
  config = configs.from_description(description['model'])
  graph, state = nnx.split(config.build(jax.random.key(0)))
  params = store.restore_params(trained / 'run', nnx.to_pure_dict(state))
  return nnx.merge(graph, params)


def prompts_of(texts):
  return converters.pad([(np.array(tiny.VOCABULARY.encode(text)), (1,)) for text in texts], 8)


def scores_of(model, prompts, answers):
  """Log-probabilities of answers, lists of tokens, under teacher forcing, and first choices."""
  width = max(map(len, answers))
  targets = np.array([np.pad(tokens, (0, width - len(tokens))) for tokens in answers], np.int32)
  weights = np.array([np.arange(width) < len(tokens) for tokens in answers], np.float32)
  inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  batch = Batch(*map(jnp.asarray, (inputs, targets, weights, prompts_of(prompts).tokens)))
  logprobs, correct, _ = decoding.score(model, batch)
  return [
    (row_logprobs[: len(tokens)], row_correct[: len(tokens)])
    for tokens, row_logprobs, row_correct in zip(answers, logprobs, correct, strict=True)
  ]


def test_answers_are_the_models_own_and_rescoring_finds_the_same_logprobs(answered, trained):
  """Teacher forcing on the decoded tokens gives the log-probabilities that decoding wrote."""
  output, table = answered
  model = model_of(trained)
  rows = raw_rows(output / 'test')
  assert len(set(table.predictions)) > 5  # or the prompts could be ignored
  prompts = Prompt(*map(jnp.asarray, prompts_of(table.inputs)))
  answer = decoding.generate(model, prompts, max_len=8, eos_id=1)
  for row, tokens, mask in zip(rows, answer.tokens, answer.mask, strict=True):
    assert row['aux']['tokens'] == tokens[mask].tolist()
    assert row['prediction'] == tiny.VOCABULARY.decode(tokens.tolist())

  scores = scores_of(model, table.inputs, [row['aux']['tokens'] for row in rows])
  for row, (logprobs, correct) in zip(rows, scores, strict=True):
    np.testing.assert_allclose(row['aux']['token_logprobs'], logprobs, atol=1e-5)
    assert correct.all()  # greedy


def test_statistics_are_those_of_the_texts(answered):
  _, table = answered
  right = [text in targets for text, targets in zip(table.predictions, table.targets, strict=True)]
  np.testing.assert_array_equal(table.statistics['accuracy'][:, 0], right)


def test_complete_shards_are_left_alone_and_a_truncated_one_is_written_again(trained, tmp_path):
  first = run(trained, tmp_path)
  shards = {path: path.read_bytes() for path in (tmp_path / 'test').iterdir()}
  lost = tmp_path / 'test' / 'backwards-predict.jsonl-00002-of-00004'
  complete = tmp_path / 'test' / 'backwards-predict.jsonl-00001-of-00004'
  lost.write_bytes(lost.read_bytes()[:-20])  # truncated
  before = complete.stat().st_mtime_ns
  again = run(trained, tmp_path)
  assert complete.stat().st_mtime_ns == before
  assert {path: path.read_bytes() for path in (tmp_path / 'test').iterdir()} == shards
  assert again.ids == first.ids


def test_an_interrupted_run_goes_on_without_losing_or_repeating_a_row(
  trained, tmp_path, monkeypatch, answered
):
  write, written = predictions.write_shard, []

  def interrupted(*args, **kwargs):
    if len(written) == 2:
      raise KeyboardInterrupt
    written.append(args)
    write(*args, **kwargs)

  monkeypatch.setattr(predictions, 'write_shard', interrupted)
  with pytest.raises(KeyboardInterrupt):
    tiny.infer(**settings(trained, tmp_path))
  with pytest.raises(FileNotFoundError, match='has not finished'):
    predictions.read(tmp_path / 'test')
  monkeypatch.setattr(predictions, 'write_shard', write)
  table = run(trained, tmp_path)
  assert table.ids == answered[1].ids
  np.testing.assert_array_equal(table.logprobs, answered[1].logprobs)


def contents(directory):
  return {path.name: path.read_bytes() for path in (directory / 'test').iterdir()}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'temperature': 5.0}, r'decoding temperature is 0\.0 there and 5\.0 here'),
    ({'alternatives': 3}, 'alternatives is 0 there and 3 here'),
    ({'precision': 'bfloat16'}, "precision is 'float32' there and 'bfloat16' here"),
    ({'shard_rows': 16}, 'shards is 4 there and 2 here'),
    ({'task_feature_lengths': {'inputs': 8, 'targets': 7}}, 'decoding max_tokens is 8 there and 7'),
  ],
  ids=str,
)
def test_a_table_of_another_origin_is_left_as_it_is(trained, answered, changes, message):
  before = contents(answered[0])
  with pytest.raises(ValueError, match=f'(?s){message}.*OVERWRITE=True'):
    run(trained, answered[0], **changes)
  assert contents(answered[0]) == before


def test_a_later_checkpoint_of_the_same_run_is_another_origin(trained, tmp_path, answered):
  shutil.copytree(answered[0], tmp_path / 'answers')
  shutil.copytree(trained / 'run', tmp_path / 'run')
  before = contents(tmp_path / 'answers')
  run(trained, tmp_path / 'answers', checkpoint_path=str(tmp_path / 'run'))  # moved: the same one
  after = contents(tmp_path / 'answers')
  assert {n for n in before if before[n] != after[n]} <= {'backwards-predict.manifest.json'}
  tiny.train(**tiny.settings(trained, model_dir=str(tmp_path / 'run'), train_steps=101))
  with pytest.raises(ValueError, match=r'; step is 100 there and 101 here'):
    run(trained, tmp_path / 'answers', checkpoint_path=str(tmp_path / 'run'))


def test_a_table_is_replaced_when_that_is_asked_for(trained, tmp_path, answered):
  shutil.copytree(answered[0], tmp_path / 'answers')
  sampled = run(trained, tmp_path / 'answers', temperature=5.0, shard_rows=16, overwrite=True)
  assert sampled.manifest['decoding']['temperature'] == 5.0
  assert list(sampled.predictions) != list(answered[1].predictions)
  assert len(contents(tmp_path / 'answers')) == 5  # two shards, their markers, the manifest


@pytest.mark.parametrize('begun', [True, False], ids=['now', 'by an older version'])
def test_an_unfinished_table_of_another_origin_is_not_continued(
  trained, tmp_path, monkeypatch, begun
):
  def interrupted(*args, **kwargs):
    write(*args, **kwargs)
    raise KeyboardInterrupt

  write = predictions.write_shard
  monkeypatch.setattr(predictions, 'write_shard', interrupted)
  with pytest.raises(KeyboardInterrupt):
    tiny.infer(**settings(trained, tmp_path))
  if not begun:
    (tmp_path / 'test' / 'backwards-predict.begun.json').unlink()
  reason = 'decoding temperature is' if begun else 'an unfinished table of unknown origin'
  with pytest.raises(ValueError, match=reason):
    tiny.infer(**settings(trained, tmp_path, temperature=5.0))
  monkeypatch.setattr(predictions, 'write_shard', write)
  run(trained, tmp_path)


def test_a_directory_that_cannot_be_written_to_is_noticed_before_anything_is_answered(
  trained, tmp_path, monkeypatch
):
  (tmp_path / 'test').write_text('a file where the directory would be')
  monkeypatch.setattr(answers.Generator, 'generate', lambda *_: pytest.fail('rows are answered'))
  with pytest.raises(OSError, match=f'{tmp_path}/test'):
    tiny.infer(**settings(trained, tmp_path))


def test_a_sample_does_not_depend_on_its_batch(trained, tmp_path, answered):
  tables = [
    run(trained, tmp_path / str(size), temperature=1.0, top_k=9, top_p=0.9, batch_size=size)
    for size in (8, 16)
  ]
  assert list(tables[0].predictions) == list(tables[1].predictions)
  assert list(tables[0].predictions) != list(answered[1].predictions)  # that are greedy


def test_scoring_gives_every_target_token_its_logprob_and_whether_it_comes_first(trained, tmp_path):
  table = run(trained, tmp_path, mode='score')
  rows = raw_rows(tmp_path / 'test', 'score')
  scores = scores_of(model_of(trained), table.inputs, [row['aux']['tokens'] for row in rows])
  for row, (logprobs, correct) in zip(rows, scores, strict=True):
    tokens = [*tiny.VOCABULARY.encode(row['inputs']['targets_pretokenized']), 1]
    aux = row['aux']
    assert aux['tokens'] == tokens
    assert row['score'] == pytest.approx(sum(aux['token_logprobs']), abs=1e-4)
    np.testing.assert_allclose(aux['token_logprobs'], logprobs, atol=1e-5)
    assert aux['correct'] == correct.astype(int).tolist()
    assert aux['statistics'] == {'token_accuracy': [sum(aux['correct']), len(tokens)]}
  assert table.manifest['metrics'] == ['token_accuracy']


def test_options_are_ranked_by_their_total_logprob(trained, tmp_path):
  options = ('A B', 'C', 'D E F')
  rows = [Row(str(i), 'a b', (options[i % 3],), options, i % 3) for i in range(6)]
  task = Task('some', ('test',), lambda _: rows, lambda _: 'x', vocabulary=lambda: tiny.VOCABULARY)
  table = run(trained, tmp_path, task=task, mode='score', candidates='options')
  for row, chosen in zip(raw_rows(tmp_path / 'test', 'score'), table.predictions, strict=True):
    scores = row['aux']['option_scores']
    assert chosen == row['aux']['options'][int(np.argmax(scores))]
    assert row['score'] == pytest.approx(max(scores), abs=1e-4)
  assert set(table.statistics) == {'accuracy', 'length_normalized_accuracy'}
  tokens = [[*tiny.VOCABULARY.encode(option), 1] for option in options]
  expected = [logprobs.sum() for logprobs, _ in scores_of(model_of(trained), ['a b'] * 3, tokens)]
  assert len(set(map(float, expected))) == 3
  for row in raw_rows(tmp_path / 'test', 'score'):
    np.testing.assert_allclose(row['aux']['option_scores'], expected, atol=1e-4)
    assert row['aux']['option_lengths'] == [3, 2, 4]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'mode': 'guess'}, "mode is 'guess'; it must be one of predict, score"),
    ({'mode': 'score', 'candidates': 'all'}, "candidates is 'all'"),
    ({'which': 7}, 'no checkpoint of step 7'),
    ({'checkpoint_path': '/nowhere'}, 'no run directory'),
    ({'splits': ['tset']}, 'no split'),
    ({'precision': 'float8'}, 'Unknown dtype'),
    ({'weights': 'float8'}, "Unknown dtype of weights 'float8'"),
  ],
)
def test_what_cannot_be_done_is_said(trained, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    tiny.infer(**settings(trained, tmp_path, **changes))


def test_eight_devices_answer_as_one_does(trained, tmp_path, answered):
  table = run(trained, tmp_path, mesh=lambda: partitioning.make_mesh(data=2, fsdp=2, tensor=2))
  assert list(table.predictions) == list(answered[1].predictions)
  np.testing.assert_allclose(table.logprobs, answered[1].logprobs, atol=1e-5)


@pytest.mark.parametrize(
  ('asked', 'precision', 'weights'),
  [
    ({'precision': 'bfloat16'}, 'bfloat16', 'bfloat16'),
    ({'weights': 'int8'}, 'float32', 'int8'),
  ],
  ids=str,
)
def test_lower_precision_is_asked_for_and_written_down(
  trained, tmp_path, answered, asked, precision, weights
):
  table = run(trained, tmp_path, **asked)
  assert (table.manifest['precision'], table.manifest['weights']) == (precision, weights)
  drift = np.abs(table.logprobs[:, 0] - answered[1].logprobs[:, 0])
  assert 0 < drift.max() < 0.5


def test_rows_without_a_label_are_answered_and_add_nothing(trained, tmp_path):
  rows = [Row(str(i), 'a b', ('B A',) if i % 2 else ()) for i in range(4)]
  task = Task('some', ('test',), lambda _: rows, lambda _: 'y', vocabulary=lambda: tiny.VOCABULARY)
  table = run(trained, tmp_path, task=task)
  assert table.manifest['unlabelled'] == 2
  assert table.statistics['accuracy'][:, 1].tolist() == [0, 1, 0, 1]


def test_a_corpus_is_a_task_as_one_kind_of_model_reads_it(trained):
  task, directory = tiny.task(trained), str(trained / 'records')
  encoder = Corpus(task, tiny.VOCABULARY, 'encoder_decoder', tiny.LENGTHS, directory)
  decoder = Corpus(task, tiny.VOCABULARY, 'decoder_only', tiny.LENGTHS, directory)
  batches = [next(c.training(3, batch_size=4, seed=1)) for c in (encoder, decoder)]
  assert batches[0].encoder.shape == (4, 8)
  assert batches[1].encoder is None
  np.testing.assert_array_equal(batches[0].weights.sum(1), batches[1].weights.sum(1))
  split = encoder.open('test')
  evaluated = list(encoder.evaluation(split, batch_size=8, rows=12))
  assert sum(bool(w.any()) for batch in evaluated for w in batch.weights) == 12


def test_a_table_of_a_version_without_alternatives_is_kept_or_refused(trained, answered, tmp_path):
  shutil.copytree(answered[0], tmp_path, dirs_exist_ok=True)
  (path,) = (tmp_path / 'test').glob('*.manifest.json')
  manifest = json.loads(path.read_text())
  del manifest['alternatives']
  path.write_text(json.dumps(manifest))
  shards_before = {k: v for k, v in contents(tmp_path).items() if 'jsonl' in k}
  with pytest.raises(ValueError, match='alternatives is 0 there and 2 here'):
    run(trained, tmp_path, alternatives=2)
  run(trained, tmp_path)
  assert {k: v for k, v in contents(tmp_path).items() if 'jsonl' in k} == shards_before


def test_embeddings_are_added_to_a_finished_table_and_resumed(trained, answered, tmp_path):
  shutil.copytree(answered[0], tmp_path, dirs_exist_ok=True)
  options = settings(trained, tmp_path)
  folder = tmp_path / 'test'
  table_files = {path.name: path.read_bytes() for path in folder.iterdir()}
  tiny.infer(**options, embeddings=['answer', 'first_layer'])
  for name, content in table_files.items():
    assert (folder / name).read_bytes() == content
  (table,) = predictions.read(folder)
  answer, first = (sidecars.read(folder, name, table) for name in features.NAMES)
  assert len(answer.shards) == table.manifest['shards'] == 4
  assert answer.array().shape == first.array().shape == (32, tiny.SMALL.emb_dim)
  assert answer.manifest['origin']['flops_per_query'] == 0
  assert 0 < first.manifest['origin']['flops_per_query'] < 8 * table.manifest['flops_per_token']

  lines = [line for path in sorted(folder.glob('*.jsonl-*-of-00004')) for line in path.open()]
  model = model_of(trained)
  for number in (0, 13, 31):
    row = json.loads(lines[number])
    tokens = row['aux']['tokens']
    targets = jnp.asarray([tokens])
    inputs = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    prompt = prompts_of([row['inputs']['inputs_pretokenized']]).tokens
    batch = Batch(inputs, targets, jnp.ones(targets.shape), jnp.asarray(prompt))
    np.testing.assert_allclose(answer.array()[number], model.hidden(batch)[0].mean(0), atol=1e-5)

  damaged = folder / sidecars.shard_name(table.task, 'predict', 'answer', 2, 4)
  content = damaged.read_bytes()
  damaged.write_bytes(content[:-4])
  tiny.infer(**options, embeddings=['answer'])
  assert damaged.read_bytes() == content
