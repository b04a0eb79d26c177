"""A model in process answers as `infer` does, whoever else asks at the time."""

import asyncio
import dataclasses
import gc
import json
import pathlib
import random
import threading

import jax
import numpy as np
import pytest
from flax import nnx

from cascades.checkpoints import store
from cascades.data import converters
from cascades.inference import answers
from cascades.inference.trained_model import Checkpoint
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.predictions import shards
from cascades.runtime import partitioning
from cascades.runtime.partitioning import Devices
from cascades.serving import engine as engines
from cascades.serving import local_model
from cascades.serving.exchanges import Message, ModelError, Question
from cascades.serving.slots import Room
from cascades.tasks import local
from cascades.tokenizers import vocabularies
from tests import testing, tiny
from tests.serving.engine_states_test import Countdown

LENGTHS = {'inputs': 24, 'targets': 12}
ROOM = Room(slots=4, max_prompt=26, max_tokens=12, max_waiting=300)
DEVICES = Devices(mesh=tiny.one_device)
# Bytes break characters into tokens; among few symbols, answers end early now and then.
VOCABULARIES = {'t5': vocabularies.bytes_vocabulary(), 'decoder': tiny.VOCABULARY}


def write_run(directory, config, vocabulary):
  """A run of random weights, whose step 0 is that of a converted model."""
  config = dataclasses.replace(config, vocab_size=-(-vocabulary.size // 8) * 8)
  description = {'model': configs.describe(config), 'vocabulary': vocabulary.fingerprint}
  weights = nnx.traversals.unflatten_mapping(testing.weights(config), sep='/')
  with partitioning.use(tiny.one_device()):
    place = lambda leaf, shape: jax.device_put(leaf, shape.sharding)
    params = jax.tree.map(place, weights, abstract_model(config)[1])
    store.make(directory, params, description, {})
  vocabularies.save(vocabulary, directory)


def texts(count):
  """Prompts that both vocabularies read, of which the first is the longest."""
  rng = random.Random(0)
  return [' '.join(rng.choices('abcd', k=rng.randint(1, 11) if n else 11)) for n in range(count)]


@pytest.fixture(scope='module', params=VOCABULARIES)
def served(request, tmp_path_factory):
  """A model in process, and infer's table of one row at a time."""
  directory = tmp_path_factory.mktemp(request.param)
  vocabulary = VOCABULARIES[request.param]
  write_run(directory / 'run', testing.CONFIGS[request.param], vocabulary)
  lines = [json.dumps({'id': str(n), 'inputs': text}) for n, text in enumerate(texts(24))]
  (directory / 'rows.jsonl').write_text('\n'.join(lines) + '\n')
  tiny.infer(
    checkpoint_path=str(directory / 'run'),
    infer_output_dir=str(directory),
    task=local.local_jsonl('rows', {'test': directory / 'rows.jsonl'}, targets_key=None),
    task_feature_lengths=LENGTHS,
    batch_size=1,
    mesh=tiny.one_device,
    records_dir=str(directory / 'records'),
    alternatives=2,
  )
  (table,) = shards.read(directory / 'test')
  model = local_model.load(
    Checkpoint(str(directory / 'run')), ROOM, devices=DEVICES, name=request.param
  )
  yield model, table
  model.close()


async def collect(model, question):
  return [piece async for piece in model.answer(question)]


def ask(model, *questions):
  async def ask_all():
    return await asyncio.gather(*(collect(model, question) for question in questions))

  return asyncio.run(ask_all())


def text_of(pieces):
  return ''.join(piece.text for piece in pieces)


def check(answers, table):
  """Answers are the rows of the table, token by token."""
  for row, pieces in enumerate(answers):
    assert text_of(pieces) == table.predictions[row]
    tokens = [token for piece in pieces for token in piece.tokens]
    assert len(tokens) == len(pieces) == table.lengths[row]
    assert pieces[-1].generated_tokens == table.column('generated_tokens')[row]
    assert pieces[-1].prompt_tokens == table.column('prompt_tokens')[row]
    np.testing.assert_allclose([t.logprob for t in tokens], table.tokens([row]), atol=1e-5)
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish == ('stop' if tokens[-1].id == 1 else 'length')


def test_single_questions_are_answered_as_in_infers_table(served):
  model, table = served
  check([ask(model, Question(text))[0] for text in table.inputs[:8]], table)
  counted = [model.count(text) for text in table.inputs]
  assert counted == table.column('prompt_tokens').tolist()  # before any answer
  assert len(set(table.predictions)) > 4


def test_questions_asked_together_are_answered_alike(served):
  model, table = served
  check(ask(model, *(Question(text) for text in table.inputs)), table)
  if model.name == 'decoder':
    assert len(set(table.lengths)) > 1


@pytest.mark.slow
def test_memory_stays_flat_over_20000_requests(served):
  model, table = served
  questions = [
    Question(text, max_tokens=2, temperature=row % 2, alternatives=row % 3)
    for row, text in enumerate(table.inputs * 10)
  ]
  sizes = []
  for turn in range(84):
    ask(model, *questions)
    if turn in (20, 83):
      gc.collect()
      resident = int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * 4096
      sizes.append((resident, sum(array.nbytes for array in jax.live_arrays())))
  (before, arrays), (after, arrays_after) = sizes
  assert arrays == arrays_after
  assert after - before < 16 << 20
  assert model.engine.running == model.engine.waiting == 0


def test_a_message_is_read_as_a_text_where_there_is_no_template(served):
  model, table = served
  question = Question((Message('user', table.inputs[0]),))
  check(ask(model, question), table)
  with pytest.raises(ValueError, match='messages of system, user: the model has no chat template'):
    ask(model, Question((Message('system', 'Be kind.'), Message('user', 'a'))))


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(served):
  model, table = served
  row = max(range(len(table.ids)), key=lambda row: len(table.predictions[row]))
  text = table.predictions[row]
  stop = text[2:4]
  (pieces,) = ask(model, Question(table.inputs[row], stop=('never', stop)))
  assert text_of(pieces) == text[: text.index(stop)]
  assert pieces[-1].finish == 'stop'
  assert pieces[-1].generated_tokens < table.lengths[row]


def test_alternatives_have_bytes_and_log_probabilities(served):
  model, table = served
  (pieces,) = ask(model, Question(table.inputs[0], alternatives=2))
  tokens = [token for piece in pieces for token in piece.tokens]
  values = [[logprob for _, logprob in token.alternatives] for token in tokens]
  np.testing.assert_allclose(values, table.alternatives[: table.lengths[0]], atol=1e-5)
  assert all(token.alternatives[0][0] == token.content for token in tokens)
  joined = b''.join(token.content for token in tokens).decode(errors='ignore')
  assert joined == table.predictions[0].replace(' ', '' if model.name == 'decoder' else ' ')


def test_closing_the_answer_frees_its_slot(served):
  model, table = served
  text = next(t for t, n in zip(table.inputs, table.lengths, strict=True) if n == 12)

  async def leave():
    answer = model.answer(Question(text))
    first = await anext(answer)
    await answer.aclose()
    for _ in range(500):
      if not model.engine.running:
        return first
      await asyncio.sleep(0.01)
    raise AssertionError('the slot is not free')

  assert asyncio.run(leave()).generated_tokens == 1


@pytest.mark.parametrize(
  ('question', 'reason'),
  [
    (Question('a ' * 60), r'the prompt has \d+ tokens, and the model reads at most 26'),
    (Question('a', max_tokens=0), 'max_tokens=0 must be a whole number at least 1'),
    (Question('a', temperature=-1.0), 'temperature=-1.0 must be'),
    (Question('a', top_p=2.0), 'top_p=2.0 must be'),
    (Question('a', seed=-1), 'seed=-1 must be'),
    (Question('a', alternatives=21), 'alternatives=21 must be'),
    (Question('a', stop=('',)), 'a stop text is empty'),
    (Question((Message('assistant', 'a'),)), "the last message is the model's own"),
  ],
)
def test_a_question_that_cannot_be_answered_is_refused_in_a_sentence(served, question, reason):
  with pytest.raises(ValueError, match=reason):
    ask(served[0], question)


def test_the_longest_answer_bounds_max_tokens(served):
  model, table = served
  short, long = ask(
    model, Question(table.inputs[0], max_tokens=2), Question(table.inputs[0], max_tokens=10**6)
  )
  assert len(short) == min(2, table.lengths[0])
  check([long], table)


def test_a_sampled_answer_is_that_of_infer_with_the_seed(served):
  model, table = served
  if model.name != 'decoder':
    pytest.skip('slow tests of the engine sample from all architectures')
  loaded, prompt = model.engine._model, model.tokens(table.inputs[0])
  with partitioning.use(tiny.one_device()):
    options = answers.DecodingOptions(temperature=1.5, top_p=0.8, seed=3)
    generator = answers.Generator(loaded, 12, options)
    expected = generator.generate(converters.pad([(prompt,)], 16), np.array([0]))
  question = Question(table.inputs[0], temperature=1.5, top_p=0.8, seed=3)
  sampled, greedy = ask(model, question, question._replace(temperature=0.0))
  ids = [token.id for piece in sampled for token in piece.tokens]
  assert ids == expected.tokens[0, expected.mask[0]].tolist()
  assert text_of(sampled) != text_of(greedy) == table.predictions[0]


def test_questions_compile_nothing(served):
  model, table = served
  with testing.compilations() as compiled:
    asked = [
      Question(text, temperature=n % 2, top_p=[0.5, None][n % 3 > 0], alternatives=n % 4)
      for n, text in enumerate(table.inputs)
    ]
    ask(model, *asked)
  assert not compiled
  assert model.engine.plan.programs == len(model.engine.plan.prompt_lengths) + 3


def test_a_closed_model_refuses(tmp_path, monkeypatch):
  monkeypatch.setattr(engines, 'RunningBatch', Countdown)
  monkeypatch.setattr(Countdown, 'gate', threading.Semaphore(10), raising=False)
  write_run(tmp_path / 'run', testing.TINY_DECODER, tiny.VOCABULARY)
  room = Room(slots=1, max_prompt=16, max_tokens=3)
  checkpoint = Checkpoint(str(tmp_path / 'run'))
  model = local_model.load(checkpoint, room, devices=DEVICES)
  assert model.name == 'run'
  assert local_model.plan(checkpoint, room, DEVICES) == model.engine.plan
  assert len(ask(model, Question('a'))[0]) == 3
  model.close()
  with pytest.raises(ModelError, match='shutting down'):
    ask(model, Question('a'))
