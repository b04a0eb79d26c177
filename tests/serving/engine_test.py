"""The engine: answers of a running batch are those that each prompt gets alone."""

import contextlib
import threading

import jax
import numpy as np
import pytest

from cascades.inference import answers
from cascades.inference.answers import DecodingOptions
from cascades.inference.trained_model import TrainedModel
from cascades.runtime import partitioning
from cascades.serving.engine import Engine, Request
from cascades.serving.exchanges import ModelError
from cascades.serving.slots import Room
from cascades.types import Prompt
from tests import testing, tiny

pytestmark = pytest.mark.slow  # tests of local models decode in both architectures

MAX_TOKENS = 12
ROOM = Room(slots=4, max_prompt=24, max_tokens=MAX_TOKENS, max_waiting=300)


def model(config):
  """A random model of `testing` as a program loads it; token 1 ends its answers."""
  graph, params = testing.split(testing.build(config))
  return TrainedModel(graph, params, testing.VOCAB, tiny.VOCABULARY, config.architecture, {})


@contextlib.contextmanager
def running(config, room=ROOM):
  engine = Engine(model(config), room, mesh=tiny.one_device(), rules=partitioning.RULES)
  engine.wait_until_ready()
  try:
    yield engine
  finally:
    engine.close()


@pytest.fixture(scope='module', params=['t5', 'everything'])
def served(request):
  """An engine, and the generator of `infer` for each decoding."""
  config = testing.CONFIGS[request.param]
  with running(config) as engine:
    yield engine, config


class Reader:
  """Collects an answer."""

  def __init__(self, engine, request):
    self.steps, self.error, self.ended = [], None, threading.Event()
    self.ticket = engine.submit(request, self)

  def __call__(self, step):
    if isinstance(step, ModelError):
      self.error = step
    else:
      self.steps.append(step)
    if self.error or step.finish:
      self.ended.set()

  def result(self):
    assert self.ended.wait(60)
    if self.error:
      raise self.error
    return self.steps


def prompts(count, longest=23, seed=0):
  """Prompts of mixed lengths that end with an end of sequence."""
  rng = np.random.RandomState(seed)
  return [
    np.append(rng.randint(3, testing.VOCAB, rng.randint(1, longest)), 1).astype(np.int32)
    for _ in range(count)
  ]


def alone(config, prompt, *, max_tokens=MAX_TOKENS, alternatives=0, **options):
  """The answer of `infer` to one prompt, as row 0."""
  with partitioning.use(tiny.one_device()):
    generator = _generator(config, max_tokens, DecodingOptions(**options), alternatives)
    width = min(w for w in (16, 32) if w >= len(prompt))
    padded = np.zeros((1, width), np.int32)
    padded[0, : len(prompt)] = prompt
    batch = Prompt(padded, np.array([len(prompt)], np.int32))
    generation = generator.generate(batch, np.array([0]))
  return jax.tree.map(lambda column: column[0, generation.mask[0]], generation)


_GENERATORS = {}


def _generator(config, *key):
  if (config, *key) not in _GENERATORS:
    max_tokens, options, alternatives = key
    _GENERATORS[config, *key] = answers.Generator(
      model(config), max_tokens, options, alternatives=alternatives
    )
  return _GENERATORS[config, *key]


def check(steps, expected):
  assert [step.token for step in steps] == expected.tokens.tolist()
  np.testing.assert_allclose([step.logprob for step in steps], expected.logprobs, atol=1e-5)


def check_all(engine, config, count):
  """Requests of mixed lengths at once are answered as each is alone."""
  texts = prompts(count)
  readers = [Reader(engine, Request(text, MAX_TOKENS)) for text in texts]
  for text, reader in zip(texts, readers, strict=True):
    check(reader.result(), alone(config, text))
  lengths = {len(reader.steps) for reader in readers}
  assert len(lengths) > 1, 'answers should end at different times'


def test_a_batch_changes_no_answer(served):
  check_all(*served, 24)


def test_200_requests_at_once_change_no_answer(served):
  check_all(*served, 200)


def test_samples_are_those_of_infer_with_the_seed(served):
  engine, config = served
  (text,) = prompts(1)
  decodings = [{'temperature': 1.5, 'top_p': 0.8, 'seed': 3}, {}]
  readers = [Reader(engine, Request(text, MAX_TOKENS, **decoding)) for decoding in decodings]
  tokens = set()
  for decoding, reader in zip(decodings, readers, strict=True):
    check(reader.result(), alone(config, text, **decoding))
    tokens.add(tuple(step.token for step in reader.steps))
  assert len(tokens) == len(decodings)


def test_every_seed_gives_a_sample_of_its_own(served):
  engine, config = served
  (text,) = prompts(1, seed=5)
  decodings = [{'temperature': 1.5, 'seed': seed} for seed in (0, 1, 2**40)]
  readers = [Reader(engine, Request(text, MAX_TOKENS, **decoding)) for decoding in decodings]
  for decoding, reader in zip(decodings, readers, strict=True):
    check(reader.result(), alone(config, text, **decoding))
  assert len({tuple(step.token for step in reader.steps) for reader in readers}) > 1


def test_alternatives_are_the_most_likely_tokens(served):
  engine, config = served
  (text,) = prompts(1, seed=1)
  plain = Reader(engine, Request(text, MAX_TOKENS))
  steps = Reader(engine, Request(text, MAX_TOKENS, alternatives=3)).result()
  expected = alone(config, text, alternatives=3)
  check(steps, expected)
  for step, logprobs in zip(steps, expected.alternatives, strict=True):
    ids, values = zip(*step.alternatives, strict=True)
    np.testing.assert_allclose(values, logprobs, atol=1e-5)
    assert ids[0] == step.token
  assert {step.alternatives for step in plain.result()} == {()}


def test_max_tokens_end_an_answer(served):
  engine, config = served
  text = next(text for text in prompts(20) if len(alone(config, text).tokens) > 3)
  steps = Reader(engine, Request(text, 3)).result()
  assert [step.finish for step in steps] == [None, None, 'length']
  assert [step.token for step in steps] == alone(config, text).tokens[:3].tolist()
  ended = next(text for text in prompts(40) if alone(config, text).tokens[-1] == 1)
  assert Reader(engine, Request(ended, MAX_TOKENS)).result()[-1].finish == 'stop'


def test_requests_compile_nothing(served):
  engine, _ = served
  with testing.compilations() as compiled:
    for count, text in enumerate(prompts(12, seed=2)):
      options = {'temperature': count % 2, 'top_p': [0.5, np.inf][count % 3 > 0]}
      Reader(engine, Request(text, MAX_TOKENS, alternatives=count % 4, **options)).result()
  assert not compiled
  assert engine.plan.prompt_lengths == (16, 24)
  assert engine.plan.programs == 5
