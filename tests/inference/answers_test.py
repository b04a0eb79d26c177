"""Generators and scorers: infer's answers without tables, compiled once for each shape."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cascades import decoding, deferral
from cascades.data import converters
from cascades.inference import answers, trained_model
from cascades.predictions import shards
from cascades.runtime import partitioning
from cascades.types import Batch
from tests import tiny

MAX_TOKENS = tiny.LENGTHS['targets']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  directory = tmp_path_factory.mktemp('trained')
  tiny.train(**tiny.settings(directory, train_steps=100, save_every=100))
  return directory


@pytest.fixture
def model(trained):
  with partitioning.use(tiny.one_device()):
    yield trained_model.load(
      trained_model.Checkpoint(str(trained / 'run')), rules=partitioning.RULES
    )


def prompts(*texts, width=8):
  """Prompts of an encoder-decoder model; an empty text pads the batch."""
  tokens = [[*tiny.VOCABULARY.encode(text), 1] if text else [] for text in texts]
  return converters.pad([(np.array(row, np.int32),) for row in tokens], width)


def batch(texts, targets):
  """The targets under teacher forcing, padded to equal length."""
  length = max(map(len, targets))
  padded = np.array([np.pad(row, (0, length - len(row))) for row in targets], np.int32)
  weights = np.array([np.arange(length) < len(row) for row in targets], np.float32)
  shifted = np.pad(padded, ((0, 0), (1, 0)))[:, :-1]
  return Batch(shifted, padded, weights, prompts(*texts).tokens)


@pytest.fixture(scope='module')
def tables(trained, tmp_path_factory):
  """Directory of tables of both modes, with three alternatives a token."""
  directory = tmp_path_factory.mktemp('tables')
  for mode in ('predict', 'score'):
    tiny.infer(
      checkpoint_path=str(trained / 'run'),
      infer_output_dir=str(directory),
      task=tiny.task(trained),
      task_feature_lengths=tiny.LENGTHS,
      batch_size=8,
      mesh=tiny.one_device,
      records_dir=str(trained / 'records'),
      mode=mode,
      alternatives=3,
    )
  return directory


@pytest.mark.slow
def test_a_generator_without_alternatives_gives_the_answers_of_infers_table(tables, model):
  (table,) = shards.read(tables / 'test')
  assert len(set(table.predictions)) > 5
  generator = answers.Generator(model, MAX_TOKENS)
  for first in range(0, len(table.ids), 8):
    chunk = slice(first, first + 8)
    generation = generator.generate(prompts(*table.inputs[chunk]), np.arange(8))
    assert generation.alternatives is None
    columns = table.predictions[chunk], table.logprobs[chunk], table.mask[chunk]
    for text, logprobs, mask, *generated in zip(*columns, *generation[:3], strict=True):
      tokens, generated_logprobs, generated_mask = generated
      assert model.vocabulary.decode(tokens[generated_mask]) == text
      np.testing.assert_allclose(generated_logprobs[generated_mask], logprobs[mask], atol=1e-5)


@pytest.mark.parametrize('mode', ['predict', 'score'])
def test_entropy_and_margin_of_a_table_are_those_of_the_models_logits(tables, model, mode):
  """A softmax in NumPy over all tokens, of which three are stored and the others count as one."""
  (table,) = shards.read(tables / 'test', mode=mode)
  paths = sorted((tables / 'test').glob(f'*-{mode}.jsonl-00000-of-00001'))
  tokens = [json.loads(line)['aux']['tokens'] for path in paths for line in path.open()]
  network = nnx.merge(model.graph, model.params)
  hidden = network.hidden(jax.tree.map(jnp.asarray, batch(table.inputs, tokens)))
  logits = np.asarray(network.readout(hidden), float)
  p = -np.sort(-np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
  shares = np.concatenate([p[..., :3], p[..., 3:].sum(-1, keepdims=True)], -1)
  entropies, margins = -(shares * np.log(shares)).sum(-1), p[..., 1] - p[..., 0]
  for score, values in (('entropy', entropies), ('margin', margins)):
    expected = [row[: len(t)].mean() for row, t in zip(values, tokens, strict=True)]
    np.testing.assert_allclose(deferral.DECIDERS[score].score(table), expected, atol=1e-5)
    assert np.ptp(expected) > 0.01
  best = np.concatenate([row[: len(t)] for row, t in zip(p[..., :3], tokens, strict=True)])
  np.testing.assert_allclose(np.exp(table.alternatives), best, atol=1e-5)


def test_evaluation_shows_entropy_and_margin_where_alternatives_are_stored(tables, tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'cascades.evaluate', '--gin_file=runs/evaluate.gin',
     f'--gin.SMALL={tables}', f'--gin.LARGE={tables}', '--gin.RESAMPLES=10',
     '--gin.INTERACTIVE=False', f'--gin.EVAL_OUTPUT_DIR={tmp_path}/report'],
    cwd=tmp_path, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  scores = {line.split(',')[2] for line in (tmp_path / 'report/summary.csv').open()}
  assert {'average', 'entropy', 'margin'} <= scores


def test_a_scorer_finds_the_log_probabilities_that_a_generator_gave(model):
  texts = ['a b', 'c d e', 'f', 'h g f e']
  tokens, logprobs, mask, _ = answers.Generator(model, MAX_TOKENS).generate(
    prompts(*texts), np.arange(4)
  )
  scored = answers.Scorer(model).score(
    batch(texts, [row[m] for row, m in zip(tokens, mask, strict=True)])
  )
  for i, row in enumerate(mask):
    np.testing.assert_allclose(scored.logprobs[i, : row.sum()], logprobs[i, row], atol=1e-5)
    assert scored.correct[i, : row.sum()].all()  # greedy answers are first choices
    assert not scored.correct[i, row.sum() :].any()
    assert not scored.logprobs[i, row.sum() :].any()


@pytest.mark.parametrize('name', ['generate', 'score'])
def test_calls_of_one_shape_compile_once(model, monkeypatch, name):
  function, traces = getattr(decoding, name), []

  def traced(*args, **kwargs):
    traces.append(name)
    return function(*args, **kwargs)

  monkeypatch.setattr(decoding, name, traced)
  generator, scorer = answers.Generator(model, 3), answers.Scorer(model)

  def call(*texts):
    if name == 'generate':
      return generator.generate(prompts(*texts), np.arange(len(texts)))
    return scorer.score(batch(texts, [[3, 4, 1]] * len(texts)))

  first, second = call('a b', 'c'), call('d', 'e f')
  assert len(traces) == 1
  assert not np.array_equal(first.logprobs, second.logprobs)
  call('a', 'b', 'c')
  assert len(traces) == 2


def test_a_sample_depends_on_its_row_id_and_not_on_its_neighbors(model):
  generator = answers.Generator(model, MAX_TOKENS, answers.DecodingOptions(temperature=3.0, seed=1))
  first = generator.generate(prompts('a b', 'c d', 'a b'), np.array([7, 8, 9]))
  second = generator.generate(prompts('e f', 'a b', 'h'), np.array([1, 7, 2]))
  np.testing.assert_array_equal(first.tokens[0], second.tokens[1])
  assert not np.array_equal(first.tokens[0], first.tokens[2])
  other_seed = answers.Generator(
    model, MAX_TOKENS, answers.DecodingOptions(temperature=3.0, seed=2)
  )
  again = other_seed.generate(prompts('a b', 'c d', 'a b'), np.array([7, 8, 9]))
  assert not np.array_equal(first.tokens, again.tokens)


def test_an_empty_prompt_gets_no_answer(model):
  generator = answers.Generator(model, MAX_TOKENS)
  generation = generator.generate(prompts('a b', ''), np.arange(2))
  assert generation.mask.any(axis=1).tolist() == [True, False]


def test_answers_need_the_mesh_of_their_model(trained):
  with partitioning.use(tiny.one_device()):
    model = trained_model.load(
      trained_model.Checkpoint(str(trained / 'run')), rules=partitioning.RULES
    )
  generator = answers.Generator(model, MAX_TOKENS)
  with pytest.raises(ValueError, match='no mesh is in use'):
    generator.generate(prompts('a'), np.arange(1))


@pytest.mark.parametrize(
  ('candidates', 'expected'),
  [
    (None, ['bleu', 'accuracy']),
    ('targets', ['token_accuracy']),
    ('options', ['bleu', 'accuracy', 'length_normalized_accuracy']),
  ],
)
def test_a_table_has_the_metrics_of_what_is_scored(candidates, expected):
  assert answers.metric_names(['bleu', 'accuracy'], candidates) == expected


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'temperature': -1}, 'TEMPERATURE=-1 must be a finite number at least 0'),
    ({'temperature': float('nan')}, 'TEMPERATURE=nan'),
    ({'temperature': 1, 'top_k': 0}, 'TOP_K=0 must be a whole number at least 1'),
    ({'temperature': 1, 'top_p': 2}, 'TOP_P=2 must be a finite number above 0 and at most 1'),
    ({'seed': -1}, 'SEED=-1'),
    ({'top_k': 3}, 'TOP_K says how tokens are drawn, and TEMPERATURE=0 draws none'),
  ],
)
def test_options_of_decoding_are_in_their_ranges(options, message):
  with pytest.raises(ValueError, match=message):
    answers.DecodingOptions(**options)
