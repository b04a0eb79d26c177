"""Drafting from a shortlist: its logits, and answers that stay those of the large model."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cascades import decoding
from cascades.data.corpus import Data
from cascades.inference import shortlist, speculation
from cascades.inference.answers import DecodingOptions, Generator
from cascades.inference.shortlist import Shortlisted
from cascades.inference.speculator import Speculator
from cascades.inference.trained_model import TrainedModel
from cascades.models import quantization
from cascades.models.abstract import abstract_model, init_params
from cascades.runtime import partitioning
from cascades.target_distributions import RULES
from cascades.tokenizers import vocabularies
from cascades.types import Prompt
from tests import testing, tiny
from tests.inference import speculation_test

COMMON = np.array([1, 4, 9, 15], np.int32)  # 1 ends an answer
MAX_LEN, NEVER = 9, -1
LENGTHS = [7, 4, 2]


@pytest.fixture(scope='module', autouse=True)
def one_device():
  configs = testing.CONFIGS, speculation_test.SMALL, speculation_test.LARGE
  for config in (config for by_name in configs for config in by_name.values()):
    testing.build(config)  # without a mesh, whose axes their layers do not name
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    yield


def prompts(width=7, filler=0):
  """Three rows of different lengths; `filler` is what stands behind their ends."""
  tokens = np.asarray(testing.tokens((3, 7), seed=9))
  tokens = np.pad(tokens, ((0, 0), (0, width - 7)))
  inside = np.arange(width) < np.array(LENGTHS)[:, None]
  return Prompt(jnp.asarray(np.where(inside, tokens, filler)), jnp.array(LENGTHS))


def allowed(prompt):
  """Tokens that each row may draft, [B, V], by a loop."""
  table = np.zeros((len(prompt.length), testing.VOCAB), bool)
  for row, (tokens, length) in enumerate(zip(*map(np.asarray, prompt), strict=True)):
    table[row, COMMON] = True
    table[row, tokens[:length]] = True
  return table


def clone(config):
  """A model of its own, since a shortlist changes the class of what it wraps."""
  return nnx.merge(*testing.split(testing.build(config)))


@pytest.mark.parametrize('name', ['t5', 'everything'])
@pytest.mark.parametrize('filler', [0, 5])
def test_logits_are_the_models_own_inside_and_minus_infinity_outside(name, filler):
  config, prompt = testing.CONFIGS[name], prompts(filler=filler)
  plain, short = clone(config), Shortlisted(clone(config), jnp.asarray(COMMON))
  steps = testing.tokens((3, 2), seed=4)

  @functools.partial(jax.jit, static_argnums=0)
  def read(graph, params):
    model = nnx.merge(graph, params)
    first, cache = model.prefill(prompt, 6)
    logits, cache = model.extend(steps, cache)
    cache = cache._replace(length=cache.length - 1)  # the second is rejected
    again, _ = model.extend(steps[:, :1], cache)
    return jnp.concatenate([first[:, None], logits, again], 1)

  inside = np.broadcast_to(allowed(prompt)[:, None], (3, 4, testing.VOCAB))
  expected, actual = (np.asarray(read(*testing.split(model))) for model in (plain, short))
  np.testing.assert_allclose(actual[inside], expected[inside], rtol=1e-5, atol=1e-5)
  assert (actual[~inside] == -np.inf).all()
  assert 0.2 < inside.mean() < 0.6


def test_everything_but_drafting_is_as_without():
  config = testing.CONFIGS['decoder']
  plain, short = clone(config), Shortlisted(clone(config), jnp.asarray(COMMON))
  batch = testing.batch(config)
  hidden = short.hidden(batch)
  np.testing.assert_allclose(hidden, plain.hidden(batch), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(short.readout(hidden), plain.readout(hidden), rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(short.table, plain.table)


def test_rows_of_int8_tables_keep_their_scales():
  config = testing.CONFIGS['decoder']
  graph, params = testing.split(testing.build(config))
  table = params['embedding']
  params = {**params, 'embedding': quantization.quantize(table, axes=(1,))}
  prompt = prompts()
  logits, _ = nnx.merge(graph, params).prefill(prompt, 3)
  short, _ = Shortlisted(nnx.merge(graph, params), jnp.asarray(COMMON)).prefill(prompt, 3)
  inside = allowed(prompt)
  np.testing.assert_allclose(short[inside], logits[inside], rtol=1e-5, atol=1e-5)


@functools.cache
def program(name, rule, options=DecodingOptions()):
  """Answers of a drafter with a shortlist, beside those of the large model alone."""
  configs = speculation_test.SMALL[name], speculation_test.LARGE[name]
  graphs, params = zip(*(testing.split(testing.build(c)) for c in configs), strict=True)

  @jax.jit
  def generate(params, prompt, row_ids, alpha):
    small, large = map(nnx.merge, graphs, params)
    pair = speculation.SpeculativePair(
      Shortlisted(small, jnp.asarray(COMMON)), large, RULES[rule].target, alpha, options
    )
    return speculation.generate(
      pair, prompt, max_len=MAX_LEN, eos_id=NEVER, gamma=3, row_ids=row_ids
    ), decoding.generate(large, prompt, max_len=MAX_LEN, eos_id=NEVER)

  return lambda prompt, row_ids=(0, 1, 2), alpha=0.0: jax.tree.map(
    np.asarray, generate(params, prompt, np.array(row_ids), np.float32(alpha))
  )


@pytest.mark.parametrize('name', [pytest.param('t5', marks=pytest.mark.slow), 'decoder'])
def test_lossless_answers_are_those_of_the_large_model(name):
  prompt = prompts()
  together, alone = program(name, 'lossless')(prompt)
  np.testing.assert_array_equal(together.answer.tokens, alone.tokens)
  drafted = together.drafted
  for row, inside in enumerate(allowed(prompt)):
    assert inside[together.answer.tokens[row]][drafted[row]].all()
  outside = ~np.take_along_axis(allowed(prompt), together.answer.tokens, 1)
  assert outside.any()
  read = ~np.isnan(together.small_logprobs)
  assert (together.small_logprobs[outside & read] == -np.inf).all()
  assert np.isfinite(together.small_logprobs[~outside & read]).all()
  assert np.isfinite(together.answer.logprobs).all()


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['opt_log', 'token_v1', 'ensemble', 'lossy_normalized'])
def test_draws_depend_neither_on_padding_nor_on_neighbors(rule):
  options = DecodingOptions(temperature=0.7, top_k=20, top_p=0.95)
  run = functools.partial(program('decoder', rule, options), alpha=0.2)
  expected, _ = run(prompts())
  assert np.isfinite(expected.answer.logprobs).all()
  padded, _ = run(prompts(width=9, filler=6))
  np.testing.assert_array_equal(padded.answer.tokens, expected.answer.tokens)
  order = [2, 0, 1]
  moved, _ = run(Prompt(*(x[jnp.array(order)] for x in prompts())), row_ids=order)
  np.testing.assert_array_equal(moved.answer.tokens, expected.answer.tokens[order])


def test_common_tokens_are_counted_over_all_answers():
  common = functools.partial(shortlist.common_tokens, vocab_size=20)
  answers = [np.array(x, int) for x in ([7, 7, 3], [], [5, 7, 3, 12], [5, 3])]
  # 3 and 7 three times, 5 twice, 12 once; 1 and 15 never, but they always belong.
  assert common(answers, 4, always=[1, 15]) == [1, 3, 7, 15]
  assert common(answers, 99, always=[1]) == [1, 3, 5, 7, 12]
  assert common(answers, 1, always=[1, 15]) == [1, 15]
  with pytest.raises(ValueError, match='no answers whose tokens'):
    common([np.array([], int)], 4, always=[1])


@pytest.mark.parametrize('chunk', [5, 4096])
def test_answers_of_all_training_rows_are_counted(tmp_path, monkeypatch, chunk):
  monkeypatch.setattr(shortlist, 'CHUNK', chunk)
  counted = []
  monkeypatch.setattr(shortlist, 'attach', lambda model, tokens: counted.append(tokens))
  config, vocabulary = testing.CONFIGS['t5'], tiny.VOCABULARY
  model = TrainedModel(None, None, config.vocab_size, vocabulary, config.architecture, {})
  task = tiny.task(tmp_path)
  data = Data(task=task, lengths=tiny.LENGTHS, batch_size=8, records_dir=str(tmp_path / 'records'))
  shortlist.from_answers(model, data, 5)
  letters = collections.Counter(
    letter for row in task.rows('train') for letter in row.answers[0].split()
  )
  expected = {
    *vocabulary.eos_ids,
    *(vocabulary.encode(letter)[0] for letter, _ in letters.most_common(4)),
  }
  assert {*counted[0]} == expected


def test_the_model_with_a_shortlist_says_so_and_costs_less():
  config = testing.CONFIGS['decoder']
  vocabulary = vocabularies.symbols([chr(97 + i) for i in range(20)])
  described = {'flops_per_token': 2000.0, 'step': 7}
  graph, params = testing.split(testing.build(config))
  model = TrainedModel(graph, params, config.vocab_size, vocabulary, config.architecture, described)
  short = shortlist.attach(model, COMMON.tolist())
  # 20 of 24 rows of width 16 are not read.
  assert short.described['flops_per_token'] == 2000 - 2 * 16 * 20
  assert short.described['shortlist'].startswith('4 tokens, ')
  assert short.described['step'] == 7
  other = shortlist.attach(model, [1, 4, 9, 16])
  assert other.described['shortlist'] != short.described['shortlist']
  assert {*map(id, jax.tree.leaves(params))} <= {*map(id, jax.tree.leaves(short.params))}  # shared
  with pytest.raises(ValueError, match='memory cannot draft from a shortlist'):
    shortlist.attach(model._replace(described={**described, 'memory': {}}), [1])
  logits, _ = nnx.merge(short.graph, short.params).prefill(prompts(), 3)
  np.testing.assert_array_equal(np.isfinite(logits), allowed(prompts()))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['t5', 'decoder'])
def test_tables_may_be_sharded_over_a_mesh(name):
  vocabulary = vocabularies.symbols([chr(97 + i) for i in range(20)])
  prompt = Prompt(np.asarray(testing.tokens((8, 5))), np.array([5, 3, 2, 5, 5, 4, 3, 1], np.int32))
  with partitioning.use(partitioning.make_mesh(data=2, fsdp=2, tensor=2)):
    models = []
    for seed, config in enumerate((speculation_test.SMALL[name], speculation_test.LARGE[name])):
      graph, abstract = abstract_model(config)
      params = init_params(config, seed, abstract)
      described = {'flops_per_token': 1.0}
      models.append(
        TrainedModel(graph, params, config.vocab_size, vocabulary, config.architecture, described)
      )
    small, large = models
    short = shortlist.attach(small, COMMON.tolist())
    together = Speculator(short, large, 'lossless', gamma=3, max_tokens=MAX_LEN)
    alone = Generator(large, MAX_LEN).generate(prompt, np.arange(8))
    actual = together.speculate(prompt, np.arange(8))
  np.testing.assert_array_equal(actual.answer.tokens, alone.tokens)
  assert actual.drafted.any()
