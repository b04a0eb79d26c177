"""Two models that write an answer together: under the rule 'lossless' it is the large one's."""

import asyncio
import time

import numpy as np
import pytest

from cascades.data import converters
from cascades.inference import answers, trained_model
from cascades.inference.trained_model import Checkpoint
from cascades.runtime import partitioning
from cascades.runtime.partitioning import Devices
from cascades.serving import speculative_model
from cascades.serving.exchanges import ModelError, Question
from cascades.serving.members import LocalOptions
from cascades.serving.options import ServedModels
from cascades.serving.slots import Room
from cascades.serving.speculative_model import Drafting
from cascades.types import Generation
from tests import testing, tiny
from tests.serving.local_model_test import ask, collect, text_of, texts, write_run

ROOM = Room(max_prompt=16, max_tokens=12, max_waiting=3)


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  directory = tmp_path_factory.mktemp('pair')
  write_run(directory / 'small', testing.TINY_EVERYTHING, tiny.VOCABULARY)
  write_run(directory / 'large', testing.TINY_DECODER, tiny.VOCABULARY)
  return Checkpoint(str(directory / 'small')), Checkpoint(str(directory / 'large'))


def load(pair, **options):
  model = speculative_model.load(
    *pair, ROOM, Drafting(**options), devices=Devices(mesh=tiny.one_device)
  )
  model.wait_until_ready()
  return model


@pytest.fixture(scope='module')
def lossless(pair):
  model = load(pair, drafts=2)
  yield model
  model.close()


def test_a_lossless_answer_is_that_of_the_large_model(lossless, pair):
  with partitioning.use(tiny.one_device()):
    large = trained_model.load(pair[1], rules=partitioning.RULES)
    generator = answers.Generator(large, 12)
    for text in texts(6)[1:]:
      prompt = np.append(tiny.VOCABULARY.encode(text), 1)
      prompt = np.append(0, prompt).astype(np.int32)
      expected = generator.generate(converters.pad([(prompt,)], 16), np.array([0]))
      mask = expected.mask[0]
      (pieces,) = ask(lossless, Question(text))
      tokens = [token for piece in pieces for token in piece.tokens]
      assert [token.id for token in tokens] == expected.tokens[0, mask].tolist()
      np.testing.assert_allclose([t.logprob for t in tokens], expected.logprobs[0, mask], atol=1e-5)
      assert text_of(pieces) == tiny.VOCABULARY.decode(expected.tokens[0, mask])
      assert pieces[-1].finish == ('stop' if tokens[-1].id == 1 else 'length')
  assert lossless.name == 'large'
  assert lossless.ready


def test_adaptive_drafts_do_not_change_a_lossless_answer(lossless, pair, caplog):
  with caplog.at_level('INFO', logger=speculative_model.__name__):
    adaptive = load(pair, drafts=1, adaptive=True)
  (line,) = (line for line in caplog.messages if 'a step of the small model' in line)
  assert 'over 1 to 2 tokens' in line
  for text in texts(8):  # drafted and not, by turns
    (drafted,), (expected,) = (ask(model, Question(text)) for model in (adaptive, lossless))
    assert text_of(drafted) == text_of(expected)
  adaptive.close()
  with pytest.raises(ValueError, match=r"adaptive='yes' must be True or False"):
    Drafting(adaptive='yes')


def test_shorter_answers_and_stop_texts(lossless):
  question = Question(texts(2)[0])
  full, two = ask(lossless, question, question._replace(max_tokens=2))
  assert [piece.tokens for piece in two] == [piece.tokens for piece in full[:2]]
  assert two[-1].finish == 'length'
  stop = text_of(full)[2:5]
  (stopped,) = ask(lossless, question._replace(stop=(stop,)))
  assert text_of(stopped) == text_of(full)[: text_of(full).index(stop)]
  assert stopped[-1].finish == 'stop'


@pytest.mark.slow
def test_a_server_opens_a_pair_as_its_large_model(lossless, pair):
  models = ServedModels(pair[0].path, pair[1].path, drafting={'drafts': 2})
  local = LocalOptions(room=ROOM, devices=Devices(mesh=tiny.one_device))
  question = Question(texts(2)[1])

  async def ask_large():
    async with models.members()[1].opened(local) as opened:
      while opened.reasons():
        assert opened.reasons() == ['the large model is compiling']
        await asyncio.sleep(0.05)
      return await collect(opened.member.model, question)

  answered = asyncio.run(ask_large())
  assert [piece.tokens for piece in answered] == [p.tokens for p in ask(lossless, question)[0]]


def test_what_the_pair_cannot_answer_is_refused(lossless):
  for question, reason in (
    (Question('a', temperature=0.5), 'temperature=0.5: models that write an answer together'),
    (Question('a', alternatives=21), 'alternatives=21 must be'),
    (Question('a ' * 30), 'the prompt has 3[0-9] tokens, and the model reads at most 16'),
  ):
    with pytest.raises(ValueError, match=reason):
      ask(lossless, question)
  with pytest.raises(ValueError, match="'best' is no rule"):
    Drafting(rule='best')


@pytest.fixture
def unhurried(pair, monkeypatch):
  """A pair that takes a tenth of a second for every answer."""

  def speculate(self, tokens):
    time.sleep(0.1)
    two = np.array([3, 1])
    return Generation(two, 0.0 * two, two > 0), time.monotonic()

  monkeypatch.setattr(speculative_model.SpeculativeModel, '_compile', lambda _: None)
  monkeypatch.setattr(speculative_model.SpeculativeModel, '_speculate', speculate)
  return load(pair)


def test_a_full_queue_and_a_closed_pair_refuse(unhurried):
  with pytest.raises(ModelError, match='4 questions wait') as error:
    ask(unhurried, *(Question(text) for text in texts(5)))
  assert error.value.retry_after >= 1
  unhurried.close()
  with pytest.raises(ModelError, match='shutting down'):
    ask(unhurried, Question('a'))


def test_closing_gives_up_what_waits(unhurried):
  async def close_early():
    asked = [asyncio.create_task(collect(unhurried, Question(text))) for text in texts(3)]
    await asyncio.sleep(0.05)
    await asyncio.to_thread(unhurried.close)
    return await asyncio.gather(*asked, return_exceptions=True)

  first, *others = asyncio.run(close_early())
  assert first[-1].finish == 'stop'
  assert all(isinstance(other, ModelError) for other in others)


@pytest.mark.slow
def test_another_rule_keeps_more_of_the_small_model(pair, lossless):
  model = load(pair, rule='chow', alpha=0.99, drafts=2)
  questions = [Question(text) for text in texts(4)]
  together, alone = (
    [text_of(pieces) for question in questions for pieces in ask(each, question)]
    for each in (model, lossless)
  )
  assert together != alone
  model.close()
