"""Sources of answers: their shares, what they read, and tables that do not fit."""

import collections
import itertools
import math

import jax
import numpy as np
import pytest

from cascades.data import converters
from cascades.data.answer_sources import AnswerSources, Unanswered
from cascades.data.corpus import Data
from cascades.predictions import rows, shards
from cascades.tasks.task import Row
from cascades.training import continuation
from tests import synthetic_tables, tiny
from tests.tiny_tasks import tiny_task

ON_POLICY = AnswerSources(fixed_fraction=0)
ROWS = [Row(f'row-{i}', ' '.join(tiny.LETTERS[: 1 + i % 4]), (tiny.LETTERS[i].upper(),))
        for i in range(8)]  # fmt: skip
ANSWERS = {row.id: [3 + i] * (1 + i % 7) + [1] for i, row in enumerate(ROWS)}
ANSWERS['row-7'] = [7] * 12  # was cut


def corpus(directory, rows=ROWS, architecture='encoder_decoder', **changes):
  data = Data(
    task=tiny_task(rows, **changes), lengths=tiny.LENGTHS, batch_size=8, records_dir=str(directory)
  )
  return data.corpus(tiny.VOCABULARY, architecture)


def table(directory, answers=ANSWERS, inputs=None, **manifest):
  """A table of these answers as `infer` writes it, of all rows or fewer."""
  (directory / 'train').mkdir(parents=True)
  records = [
    rows.build(
      id=row.id, inputs=inputs or row.inputs, targets=row.answers, answer='',
      tokens=answers[row.id], logprobs=[-1.0] * len(answers[row.id]),
      statistics={'accuracy': [0.0, 1.0]},
    )
    for row in ROWS if row.id in answers
  ]  # fmt: skip
  manifest = {'split': 'train', 'vocabulary': tiny.VOCABULARY.fingerprint} | manifest
  synthetic_tables.write(directory / 'train', 'tiny', records, **manifest)
  return str(directory)


def stream(corpus, sources, steps, seed=3):
  return list(itertools.islice(corpus.training(0, batch_size=8, seed=seed, sources=sources), steps))


def generated(directory):
  return AnswerSources(fixed_fraction=0, on_policy_fraction=0, large_answers=directory)


def test_the_shares_of_the_sources_are_those_of_the_spec():
  sources = AnswerSources(fixed_fraction=0.3, on_policy_fraction=0.5, large_answers='x')
  expected = {'fixed': 0.3, 'on_policy': 0.35, 'target_generated': 0.35}
  count = 5000
  drawn = collections.Counter(sources.of_step(5, step) for step in range(count))
  for source, share in expected.items():
    assert sources.share(source) == pytest.approx(share)
    assert abs(drawn[source] / count - share) < 3 * math.sqrt(share * (1 - share) / count)
  other = [sources.of_step(6, step) for step in range(100)]
  assert other != [sources.of_step(5, step) for step in range(100)]


@pytest.mark.parametrize(
  ('fixed', 'on_policy', 'source'),
  [(1, 0.5, 'fixed'), (0, 1, 'on_policy'), (0, 0, 'target_generated')],
)
def test_the_corners_are_one_source_alone(fixed, on_policy, source):
  table = None if fixed or on_policy else 'x'
  sources = AnswerSources(fixed_fraction=fixed, on_policy_fraction=on_policy, large_answers=table)
  assert {sources.of_step(0, step) for step in range(1000)} == {source}


@pytest.mark.parametrize('architecture', list(converters.CONVERTERS))
def test_on_policy_steps_never_read_the_answers(tmp_path, architecture):
  """Oracle 7(c) of DistillSpec: other answers, or none, change nothing."""
  streams = [
    stream(
      corpus(
        tmp_path, [row._replace(answers=answers) for row in ROWS], architecture, fingerprint=name
      ),
      ON_POLICY,
      3,
    )
    for name, answers in (('a', ('A',)), ('b', ('B C D',)), ('none', ()))
  ]
  for first, *others in zip(*streams, strict=True):
    assert isinstance(first, Unanswered)
    for other in others:
      jax.tree.map(np.testing.assert_array_equal, first, other)


@pytest.mark.parametrize('architecture', list(converters.CONVERTERS))
def test_prompts_are_those_of_the_batches_of_the_task(tmp_path, architecture):
  data = corpus(tmp_path, architecture=architecture)
  fixed, prompts = (stream(data, sources, 4) for sources in (AnswerSources(), ON_POLICY))
  for batch, unanswered in zip(fixed, prompts, strict=True):
    if unanswered.encoder is None:
      first = np.argmax(batch.weights, 1)  # is predicted from the context's last token
      np.testing.assert_array_equal(unanswered.context.length, first + 1)
      shown = np.arange(batch.inputs.shape[1]) <= first[:, None]
      width = unanswered.context.tokens.shape[1]
      np.testing.assert_array_equal(
        np.where(shown, batch.inputs, 0)[:, :width], unanswered.context.tokens
      )
    else:
      np.testing.assert_array_equal(unanswered.encoder.tokens, batch.encoder)
      np.testing.assert_array_equal(unanswered.encoder.length, (batch.encoder > 0).sum(1))
      np.testing.assert_array_equal(unanswered.context.tokens, batch.inputs[:, :1])


@pytest.mark.parametrize('architecture', list(converters.CONVERTERS))
def test_answers_of_the_table_are_the_targets_and_a_cut_one_does_not_end(tmp_path, architecture):
  data = corpus(tmp_path, architecture=architecture)
  sources = generated(table(tmp_path / 'answers'))
  for step, batch in enumerate(stream(data, sources, 3)):
    ids = data.training_ids(step, batch_size=8, seed=3)
    for row, targets, weights in zip(ids, batch.targets, batch.weights, strict=True):
      assert targets[weights > 0].tolist() == ANSWERS[row][: tiny.LENGTHS['targets']]
    (fixed,) = itertools.islice(data.training(step, batch_size=8, seed=3), 1)
    assert jax.tree.map(np.shape, fixed) == jax.tree.map(np.shape, batch)
    jax.tree.map(np.testing.assert_array_equal, fixed.encoder, batch.encoder)


def test_rows_without_an_answer_are_refused_where_a_step_learns_it(tmp_path):
  data = corpus(tmp_path, [*ROWS, Row('none', 'a', ())])
  stream(data, ON_POLICY, 1)
  with pytest.raises(ValueError, match='1 rows have no answer to learn'):
    stream(data, AnswerSources(fixed_fraction=0.5), 1)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'vocabulary': 'f00df00df00d'}, 'has tokens of vocabulary f00df00df00d, and this run has'),
    ({'answers': {'row-0': [1], 'row-3': [1]}}, "no answer to 6 of 8 rows of tiny, .* 'row-1'"),
    ({'inputs': 'b a'}, "other inputs, or other tokens, for 8 of 8 rows of tiny.* 'row-0'"),
    ({'answers': ANSWERS | {'row-2': [24, 1]}}, "other tokens, for 1 of 8 rows .* 'row-2'"),
  ],
)  # fmt: skip
def test_a_table_of_other_rows_or_tokens_is_refused_by_name(tmp_path, changes, message):
  directory = table(tmp_path / 'answers', **changes)
  with pytest.raises(ValueError, match=message) as raised:
    stream(corpus(tmp_path), generated(directory), 1)
  assert str(raised.value).startswith(f'LARGE_ANSWERS={directory!r}')


def test_a_table_of_another_task_or_split_is_refused(tmp_path):
  directory = table(tmp_path / 'answers')
  with pytest.raises(FileNotFoundError, match="no table of mode 'predict' of task 'other'"):
    stream(corpus(tmp_path, name='other'), generated(directory), 1)
  (tmp_path / 'answers' / 'train').rename(tmp_path / 'answers' / 'test')
  with pytest.raises(FileNotFoundError, match='answers/train does not exist'):
    stream(corpus(tmp_path), generated(directory), 1)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'fixed_fraction': 1.5}, 'FIXED_FRACTION=1.5 must be'),
    ({'fixed_fraction': 0.3, 'on_policy_fraction': 0.5},
     'FIXED_FRACTION=0.3, ON_POLICY_FRACTION=0.5 leave 0.35 of the steps .* LARGE_ANSWERS'),
    ({'fixed_fraction': 0.3, 'large_answers': 'x'}, "leave no step to .*LARGE_ANSWERS='x'"),
    ({'sample_every': 0}, 'SAMPLE_EVERY=0 must be'),
    ({'sample_tokens': 2.5}, 'SAMPLE_TOKENS=2.5 must be'),
  ],
)  # fmt: skip
def test_settings_that_do_not_fit_together_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    AnswerSources(**settings)


@pytest.mark.parametrize('content', ['[', '[]'])
def test_a_damaged_table_is_refused_after_the_settings_are_described(tmp_path, content):
  directory = table(tmp_path / 'answers')
  manifest = tmp_path / 'answers' / 'train' / shards.manifest_name('tiny', 'predict')
  manifest.write_text(content)
  data, sources = corpus(tmp_path), generated(directory)
  settings = continuation._model_answers(sources, data, str)
  assert settings['LARGE_ANSWERS'] == {'path': directory, 'identity': None}
  with pytest.raises(ValueError, match=manifest.name):
    stream(data, sources, 1)
