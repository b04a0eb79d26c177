"""The comparison of distilled drafters: its numbers on hand-made columns, and its readings."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import distillspec, distillspec_models, distillspec_pairs, distillspec_table
from benchmarks.distillspec_pairs import PAIRS
from cascades import metrics
from cascades.data.corpus import Data
from cascades.tasks import local
from cascades.types import Prompt
from tests import testing


def columns(right, alpha):
  """Four words, of which the large model answers three rightly, and two in lossless decoding."""
  counts = {'accepted': [3, 1], 'rejected': [1, 0], 'calls': [2, 1], 'tokens': [5, 2]}
  return {
    'score': np.array([4.0, 3, 2, 1]),
    'small right': np.array([[value, 1.0] for value in right]),
    'large right': np.array([[value, 1.0] for value in (1, 1, 0, 1)]),
    'commit': np.array('abc'),
    **{f'alpha {t}': np.full(4, alpha) for t in (0, 1)},
    **{f'{name} {t}': np.array(values) for name, values in counts.items() for t in (0, 1)},
  }


def test_numbers_of_four_words_by_hand():
  of = distillspec_table.numbers(
    columns([0, 0, 0, 1], 0.8), np.arange(4), np.arange(2), metrics.ratio
  )
  assert of['expected acceptance, T=1'] == pytest.approx(0.8)
  assert of['observed acceptance, T=1'] == pytest.approx(4 / 5)
  assert of['block efficiency, T=0'] == pytest.approx(7 / 3)
  assert of['small alone'] == pytest.approx(1 / 4)
  # quality at 0, 1, 2, 3 and 4 deferrals: 1/4, 2/4, 3/4, 3/4, 3/4
  assert of['area'] == pytest.approx((0.25 / 2 + 0.5 + 0.75 + 0.75 + 0.75 / 2) / 4)
  assert of['area above chord'] == pytest.approx(0.625 - 0.5)


def test_an_arm_is_better_only_if_both_intervals_exclude_zero():
  control = [columns([0, 0, 0, 1], a) for a in (0.80, 0.81, 0.79)]
  arms = {
    'control': control,
    'steady': [columns([0, 0, 0, 1], a) for a in (0.85, 0.86, 0.84)],
    'of one seed': [columns([0, 0, 0, 1], a) for a in (0.95, 0.81, 0.79)],
  }
  summary = distillspec_table.summarize(arms, 'control', metrics.ratio, samples=20)
  verdicts = {
    name: distillspec_table.verdict(own['expected acceptance, T=1'])
    for name, own in summary.items()
  }
  assert verdicts == {'control': 0, 'steady': 1, 'of one seed': 0}
  assert summary['steady']['expected acceptance, T=1']['difference']['mean'] == pytest.approx(0.05)


def test_crossed_arms_keep_the_divergence_and_name_their_reference():
  arms = list(distillspec.crossed_arms('jsd'))
  assert [arm.name for arm in arms] == [
    'jsd cat, fixed', 'jsd adaspec, fixed', 'jsd adaspec smallest, fixed',
  ]  # fmt: skip
  loss = distillspec.DIVERGENCES['jsd'].keywords['token_loss']
  assert all(_token_loss(arm.loss) is loss for arm in arms)
  assert [arm.reference for arm in arms] == [None, 'jsd, fixed', 'jsd, fixed']


def _token_loss(loss):
  """Bound token loss; a partial that gin has marked stays inside of the one that binds more."""
  return loss.keywords['token_loss'] if 'token_loss' in loss.keywords else _token_loss(loss.func)


@pytest.mark.parametrize(
  'config', [pytest.param(testing.TINY_T5, marks=pytest.mark.slow), testing.TINY_DECODER]
)
def test_states_before_tokens_are_those_from_which_they_were_decoded(config):
  graph, params = testing.split(testing.build(config))
  lengths = jnp.array([7, 4, 5])
  tokens = testing.tokens((3, 7))
  prompt = Prompt(jnp.where(jnp.arange(7) < lengths[:, None], tokens, 0), lengths)
  options = {'length': 5, 'eos_ids': (1,), 'temperature': 1}
  answer = distillspec_models.answered(graph, params, prompt, jnp.arange(3), **options)
  encodes = config.architecture == 'encoder_decoder'
  hidden = distillspec_models.states(graph, params, prompt, answer, encodes=encodes)
  logprobs = jax.nn.log_softmax(nnx.merge(graph, params).readout(hidden))
  chosen = jnp.take_along_axis(logprobs, answer.tokens[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose((chosen * answer.mask), answer.logprobs * answer.mask, atol=1e-5)
  shares = distillspec_models.agreement(
    (graph, graph), (params, params), (hidden, hidden), answer
  )  # of a model with itself
  np.testing.assert_allclose(shares['expected'], 1, atol=1e-6)
  np.testing.assert_array_equal(shares['greedy'], 1)


def test_outputs_beside_a_reference_are_not_those_without_one(tmp_path, monkeypatch):
  stored = []
  cache = lambda checkpoint, directory, **kwargs: stored.append(directory)
  monkeypatch.setattr(distillspec.cache_teacher, 'cache_teacher', cache)
  (tmp_path / '0' / 'large').mkdir(parents=True)
  (tmp_path / '1').mkdir()
  (tmp_path / '1' / 'large').symlink_to(tmp_path / '0' / 'large')
  seeds = [distillspec.Seed(PAIRS['smollm2'], tmp_path / str(n), n, tmp_path) for n in (0, 1)]
  data = Data(lengths={}, batch_size=1)
  masked, adaspec, _ = distillspec.crossed_arms('jsd')
  for arm in (masked, adaspec):
    for seed in seeds:
      seed.teacher(arm, data)
  shared, own = stored[:2], stored[2:]
  assert len(set(shared)) == 1
  assert len({*shared, *own}) == 3


def test_training_rows_are_short_ones_in_a_fixed_order_and_may_be_answered_by_the_large_model(
  tmp_path, monkeypatch
):
  lines = [json.dumps({'inputs': 'x' * size, 'targets': str(size)}) for size in range(1, 31)]
  (tmp_path / 'rows.jsonl').write_text('\n'.join(lines))
  read = lambda folder: local.local_jsonl('lines', {'train': str(folder / 'rows.jsonl')})
  pair = dataclasses.replace(PAIRS['smollm2'], task=read, rows=8, short=20)
  task = pair.training_task(tmp_path)
  rows = list(task.read('train'))
  assert rows == list(pair.training_task(tmp_path).read('train'))
  assert len({row.id for row in rows}) == 8
  assert max(len(row.inputs) for row in rows) <= 20
  assert [row.answers for row in rows] == [(str(len(row.inputs)),) for row in rows]
  table = types.SimpleNamespace(
    ids=[row.id for row in rows], predictions=[row.inputs.upper() for row in rows]
  )
  monkeypatch.setattr(distillspec_pairs.shards, 'read', lambda directory: [table])
  answered = distillspec_pairs.answered_by_large(task, tmp_path)
  assert [row.answers for row in answered.read('train')] == [(row.inputs.upper(),) for row in rows]


def test_a_single_seed_is_judged_over_rows():
  arms = {name: [columns([0, 0, 0, 1], a)] for name, a in (('control', 0.8), ('better', 0.9))}
  summary = distillspec_table.summarize(arms, 'control', metrics.ratio, samples=20)
  entry = summary['better']['expected acceptance, T=1']
  assert distillspec_table.verdict(entry) == 1
  json.dumps(entry, allow_nan=False)
