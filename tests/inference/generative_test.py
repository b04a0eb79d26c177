"""A language model as a level of an online cascade: it ranks as `infer` does, and learns."""

import numpy as np
import pytest

from cascades import stream as program
from cascades.inference.generative import GenerativeConfig
from cascades.inference.levels import LinearConfig
from cascades.predictions import shards
from cascades.tasks import chats
from cascades.tasks.task import Row, Task
from tests import infer_test, stream_test, testing, tiny
from tests.serving.local_model_test import VOCABULARIES, write_run

OPTIONS = ('a b', 'c', 'd d')
LINES = ['a b c', 'd', 'b b a c', 'c d', 'a', 'd d d b']


@pytest.fixture(scope='module', params=[pytest.param('t5', marks=pytest.mark.slow), 'decoder'])
def checkpoint(request, tmp_path_factory):
  directory = tmp_path_factory.mktemp(request.param)
  write_run(directory / 'run', testing.CONFIGS[request.param], VOCABULARIES[request.param])
  return directory / 'run', request.param


def config(checkpoint, **changes):
  given = {'options': OPTIONS, 'tokens': 16, 'batch': 4, 'rate': 1e-2, **changes}
  return GenerativeConfig(str(checkpoint[0]), **given)


@pytest.mark.parametrize('prompts', [None, chats.continuation])
def test_probabilities_are_those_of_the_options_that_infer_ranks(checkpoint, tmp_path, prompts):
  rows = [Row(str(n), f'say {line}', (OPTIONS[0],), OPTIONS, 0) for n, line in enumerate(LINES)]
  task = Task(
    'some', ('test',), lambda _: rows, lambda _: 'x', vocabulary=lambda: VOCABULARIES[checkpoint[1]]
  )
  tiny.infer(
    checkpoint_path=str(checkpoint[0]), infer_output_dir=str(tmp_path), task=task,
    task_feature_lengths={'inputs': 16, 'targets': 4}, batch_size=4, mesh=tiny.one_device,
    records_dir=str(tmp_path / 'records'), mode='score', candidates='options', prompts=prompts,
  )  # fmt: skip
  (table,) = shards.read(tmp_path / 'test', mode='score')
  model = config(checkpoint, prompt='say {inputs}', prompts=prompts).build(3, 0)
  p = model.predict(model.prepare(LINES), np.arange(len(LINES)))
  assert [OPTIONS[i] for i in p.argmax(1)] == table.predictions
  np.testing.assert_allclose(p.sum(1), 1)
  scores = np.array(
    [row['aux']['option_scores'] for row in infer_test.raw_rows(tmp_path / 'test', 'score')]
  )
  expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
  np.testing.assert_allclose(p, expected, atol=1e-4)


def test_a_query_is_ranked_alike_alone_and_among_others(checkpoint):
  model = config(checkpoint).build(3, 0)
  prepared = model.prepare(LINES)
  together = model.predict(prepared, np.arange(6))
  for row in range(6):
    np.testing.assert_array_equal(model.predict(prepared, np.array([row]))[0], together[row])


@pytest.mark.parametrize('checkpoint', ['decoder'], indirect=True)
def test_texts_are_cut_where_a_prompt_is_continued_and_its_end_stays(checkpoint):
  model = config(checkpoint, prompt='c {inputs} d', prompts=chats.continuation).build(3, 0)
  long, short = model.prepare(['a b ' * 40, 'a']).prompts.tokens
  end, pad = VOCABULARIES['decoder'].encode('d')[-1], VOCABULARIES['decoder'].pad_id
  for tokens in (long, short):
    assert tokens[tokens != pad][-1] == end
  assert (long != pad).sum() > (short != pad).sum()
  with pytest.raises(ValueError, match='tokens=2, and the prompt of an empty query has'):
    config(checkpoint, prompt='c {inputs} d d', prompts=chats.continuation, tokens=2).build(3, 0)


def test_it_learns_the_experts_classes_and_goes_on_exactly_from_its_state(checkpoint):
  labels = [0, 1, 2, 1, 0, 2]
  model, other = (config(checkpoint).build(3, 0) for _ in range(2))
  prepared, rows = model.prepare(LINES), np.arange(6)
  before = model.predict(prepared, rows)
  for _ in range(15):
    model.partial_fit(LINES, labels)
  after = model.predict(prepared, rows)
  right = lambda p: p[rows, labels].mean()
  assert right(after) > right(before) + 0.2
  other.restore(model.state())
  for each in (model, other):
    each.partial_fit(LINES, labels[::-1])
  for name, value in model.state().items():
    np.testing.assert_array_equal(other.state()[name], value)


def test_fixed_weights_stay_and_those_of_another_checkpoint_are_refused(checkpoint, tmp_path):
  model = config(checkpoint, epochs=0).build(3, 0)
  prepared, rows = model.prepare(LINES), np.arange(6)
  before = model.predict(prepared, rows)
  model.partial_fit(LINES, [0] * 6)
  np.testing.assert_array_equal(model.predict(prepared, rows), before)
  assert list(model.state()) == ['identity']
  model.restore(model.state())
  write_run(tmp_path / 'run', testing.CONFIGS['t5'], VOCABULARIES['t5'])
  other = GenerativeConfig(str(tmp_path / 'run'), OPTIONS, epochs=0).build(3, 0)
  with pytest.raises(ValueError, match='holds another checkpoint than when this stream began'):
    other.restore(model.state())


@pytest.mark.parametrize(
  ('changes', 'reason'),
  [({'prompt': 'say'}, 'has no {inputs}'), ({'options': ('a', 'b')}, 'are 2 texts of 3 classes')],
)
def test_settings_that_do_not_fit_are_refused(checkpoint, changes, reason):
  with pytest.raises(ValueError, match=reason):
    config(checkpoint, **changes).build(3, 0)


@pytest.mark.slow  # compiles three models
@pytest.mark.parametrize('checkpoint', ['t5'], indirect=True)  # whose vocabulary has all letters
def test_a_stream_with_a_generative_level_goes_on_bit_by_bit_after_a_kill(
  checkpoint, tmp_path, monkeypatch
):
  stream_test.write(tmp_path / 'reviews.jsonl', stream_test.reviews(200, noise=0.02))
  two = {
    'levels': (
      LinearConfig(columns=256), config(checkpoint, options=stream_test.OPTIONS, tokens=48)
    ),
    'next_costs': (1.0, 100.0), 'caches': (8, 8), 'decays': (0.9, 0.9), 'kappas': (0.4, 0.4),
    'gate_rates': (7e-4, 7e-4), 'expert': program.ExpertOptions(calls=120),
  }  # fmt: skip
  stream_test.go(tmp_path, 'whole', **two)
  assert {row['level'] for row in stream_test.answers(tmp_path, 'whole')} == {1, 2, 3}
  stream_test.killed_at(100, monkeypatch, lambda: stream_test.go(tmp_path, **two))
  stream_test.go(tmp_path, **two)
  assert stream_test.answers(tmp_path) == stream_test.answers(tmp_path, 'whole')
  with (
    np.load(tmp_path / 'run' / 'state.npz') as a, np.load(tmp_path / 'whole' / 'state.npz') as b
  ):  # fmt: skip
    for name in set(a.files) - {'values'}:
      np.testing.assert_array_equal(a[name], b[name])
