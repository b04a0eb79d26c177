"""Settings of a run directory: what counts as a change, and what is kept of earlier ones."""

import dataclasses
import functools
import json
import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cascades import losses
from cascades.data.corpus import Data
from cascades.runtime import stopping
from cascades.tasks import local
from cascades.tasks.task import Mixture
from cascades.training import continuation, optimizers
from cascades.training.setup import LargeModel, SmallModel, Step
from tests import tiny

STEP = Step(learning_rate=optimizers.constant(1e-2))


@pytest.fixture(scope='module')
def task(tmp_path_factory):
  return tiny.task(tmp_path_factory.mktemp('rows'))


def describe(task, *, step=STEP, large=LargeModel(), bindings='', **changes):
  seed = changes.pop('seed', 0)
  data = Data(**{'task': task, 'lengths': tiny.LENGTHS, 'batch_size': 8} | changes)
  corpus = data.corpus(tiny.VOCABULARY, 'encoder_decoder')
  return continuation.describe(
    SmallModel(), large, data, step, corpus=corpus, seed=seed, bindings=bindings
  )


def refusal(directory, start, now):
  with pytest.raises(ValueError, match='other settings') as raised:
    continuation.check(directory, start, now, stopping.stop)
  return str(raised.value)


def changed(directory, task, **changes):
  continuation.record(directory, 0, describe(task), {})
  return refusal(directory, 6, describe(task, **changes))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'batch_size': 4},
      'BATCH_SIZE is 8 there and 4 here. The rows of a step depend on BATCH_SIZE:',
    ),
    ({'seed': 1}, 'SEED is 0 there and 1 here'),
    ({'pack_length': 32}, 'PACK_LENGTH is None there and 32 here'),
    ({'lengths': {'inputs': 8, 'targets': 9}}, 'TASK_FEATURE_LENGTHS targets is 8 there and 9'),
  ],
  ids=str,
)
def test_whatever_orders_the_rows_is_refused_by_name(tmp_path, task, changes, message):
  text = changed(tmp_path, task, **changes)
  assert message in text
  assert 'some would repeat, and others be left out' in text
  assert 'ON_CHANGED_SETTINGS=@stopping.go_on' in text


def other_task(directory, rows=64):
  directory.mkdir()
  task = local.local_jsonl('other', tiny.write_rows(directory, rows))
  return task


def test_other_rows_rates_and_orders_of_tasks_are_refused(tmp_path, task):
  (tmp_path / 'run').mkdir()
  other = other_task(tmp_path / 'rows')
  continuation.record(tmp_path / 'run', 0, describe(Mixture('both', (task, other))), {})

  def mixture_refused(*tasks):
    return refusal(tmp_path / 'run', 6, describe(Mixture('both', tasks)))

  fewer = other_task(tmp_path / 'fewer', 60)
  assert 'TASK other source is ' in mixture_refused(task, fewer)
  rated = dataclasses.replace(other, rate=3)
  assert 'TASK other rate is None there and 3' in mixture_refused(task, rated)
  assert 'TASK has the order backwards, other there and other, backwards here' in (
    mixture_refused(other, task)
  )
  assert 'TASK other is ' in mixture_refused(task)
  moved = other_task(tmp_path / 'moved')
  continuation.check(tmp_path / 'run', 6, describe(Mixture('both', (task, moved))), stopping.stop)


def with_weight(w):
  return functools.partial(losses.cat_dist, w=w)


def scheduled(transition_steps):
  return with_weight(optax.linear_schedule(1.0, 0.0, transition_steps))


@pytest.mark.parametrize(
  ('before', 'now', 'message'),
  [
    ({}, {'loss': losses.cat_xent}, "LOSS is losses.xent there and losses.cat_xent here"),
    ({'loss': with_weight(0.5)}, {'loss': with_weight(0.6)}, 'LOSS w is 0.5 there and 0.6 here'),
    ({'loss': scheduled(9)}, {'loss': scheduled(8)}, 'transition_steps is 9 there and 8 here'),
    ({}, {'optimizer': optimizers.adamw}, 'OPTIMIZER is optimizers.adafactor there and optim'),
    (
      {'optimizer': optimizers.adamw},
      {'optimizer': functools.partial(optimizers.adamw, weight_decay=0.1)},
      'OPTIMIZER weight_decay is 0.0 there and 0.1 here',
    ),
    ({}, {'normalizer': 100}, 'LOSS_NORMALIZING_FACTOR is train_step.valid_tokens there and 100'),
    ({}, {'accept': lambda _: True}, 'ACCEPT is train_step.finite there and '),
    (
      {}, {'learning_rate': optimizers.constant(2e-2)},
      'LEARNING_RATE is 0.01 there and 0.02 here in step 1 ',
    ),
    (
      {}, {'learning_rate': optimizers.constant(1e-2, warmup_steps=3)},
      'LEARNING_RATE is 0.01 there and 0 here in step 1 ',
    ),
    (
      {'learning_rate': optimizers.linear(1e-2, total_steps=8)},
      {'learning_rate': optimizers.linear(1e-2, total_steps=16)},
      'LEARNING_RATE is 0.00875 there and 0.009375 here in step 2 ',
    ),
    (
      {'learning_rate': optax.piecewise_constant_schedule(1e-2, {70: 0.1})},
      {'learning_rate': optax.piecewise_constant_schedule(1e-2, {120: 0.1})},
      'LEARNING_RATE is 0.00183077 there and 0.00875385 here on average in steps 65 to 129 ',
    ),
  ],
  ids=[
    'loss', 'weight', 'schedule of a weight', 'optimizer', 'decay', 'normalizer', 'accept',
    'learning rate', 'warmup', 'length of a schedule', 'boundary of a schedule',
  ],
)  # fmt: skip
def test_another_step_is_refused_by_name(tmp_path, task, before, now, message):
  continuation.record(tmp_path, 0, describe(task, step=dataclasses.replace(STEP, **before)), {})
  assert message in refusal(tmp_path, 6, describe(task, step=dataclasses.replace(STEP, **now)))


def test_arguments_that_the_command_line_binds_count(tmp_path, task):
  step = dataclasses.replace(STEP, loss=losses.cat_dist, optimizer=optimizers.adamw)
  continuation.record(tmp_path, 0, describe(task, step=step), {})
  same = {'losses.cat_dist.w': 0.5, 'losses.dist.w': 0.1, 'my_optimizers.adamw.b1': 0.5}
  continuation.check(
    tmp_path, 6, describe(task, step=step, bindings=json.dumps(same)), stopping.stop
  )
  other = {'losses.cat_dist.w': 0.7, 'optimizers.adamw.b2': 0.95}
  text = refusal(tmp_path, 6, describe(task, step=step, bindings=json.dumps(other)))
  assert 'LOSS w is 0.5 there and 0.7 here; OPTIMIZER b2 is 0.999 there and 0.95 here' in text


def test_another_list_of_teacher_caches_is_refused(tmp_path, task):
  before, now = (
    describe(task, large=LargeModel(teacher_cache=caches)) for caches in (['a', 'b'], ['a', 'c'])
  )
  continuation.record(tmp_path, 0, before, {})
  continuation.check(tmp_path, 6, before, stopping.stop)
  assert re.search(r'TEACHER_CACHE is \S*/a, \S*/b there and \S*/a, \S*/c here',
                   refusal(tmp_path, 6, now))  # fmt: skip


def test_what_changes_no_number_is_no_change(tmp_path, task):
  continuation.record(tmp_path, 0, describe(task), {})
  rounding = dataclasses.replace(STEP, microbatches=2, block_length=4)
  continuation.check(tmp_path, 6, describe(task, step=rounding, records_dir='/x'), stopping.stop)
  backwards = dict(reversed(tiny.LENGTHS.items()))
  continuation.check(tmp_path, 6, describe(task, lengths=backwards), stopping.stop)
  # Written anew by every start, and called with other types.
  learning_rate = lambda step: jnp.float32(1e-2) + 0 * step
  continuation.check(
    tmp_path, 6, describe(task, step=dataclasses.replace(STEP, learning_rate=learning_rate)),
    stopping.stop,
  )  # fmt: skip


def test_nothing_is_compared_before_the_first_checkpoint_or_without_a_record(
  tmp_path, task, caplog
):
  continuation.check(tmp_path, 6, describe(task), stopping.stop)
  assert 'has no settings.json: it cannot be checked' in caplog.text
  continuation.record(tmp_path, 0, describe(task), {})
  continuation.check(tmp_path, 0, describe(task, seed=1), stopping.stop)


def test_values_that_an_earlier_version_named_by_their_type_are_not_compared(tmp_path, task):
  table = functools.partial(losses.cat_dist, w=np.ones(3))
  now = describe(task, step=dataclasses.replace(STEP, loss=table))
  earlier = now | {'LOSS': now['LOSS'] | {'w': 'ndarray'}}
  continuation.record(tmp_path, 0, earlier, {})
  continuation.check(tmp_path, 6, now, stopping.stop)


def test_a_damaged_record_is_named(tmp_path, task):
  (tmp_path / 'settings.json').write_text('[{"first')
  with pytest.raises(ValueError, match=r'settings.json is damaged .* or remove it'):
    continuation.check(tmp_path, 6, describe(task), stopping.stop)


def test_every_configuration_is_kept_with_its_steps(tmp_path, task):
  """Steps 1 to 6 with A, 7 to 9 with B; a start of C at 9 is killed, and D goes on from there."""
  for start, batch_size, config in (
    (0, 8, 'A'),
    (6, 8, 'A'),
    (6, 4, 'B'),
    (9, 2, 'C'),
    (9, 1, 'D'),
  ):
    origin = {'config': config, 'commit': 'abc'}
    continuation.record(tmp_path, start, describe(task, batch_size=batch_size), origin)
  assert {path.name: path.read_text() for path in tmp_path.glob('*.gin')} == {
    'config-1-6.gin': 'A', 'config-7-9.gin': 'B', 'config.gin': 'D',
  }  # fmt: skip
  entries = json.loads((tmp_path / 'settings.json').read_text())
  assert [(entry['first_step'], entry['settings']['BATCH_SIZE']) for entry in entries] == [
    (1, 8), (7, 4), (10, 1),
  ]  # fmt: skip
  assert entries[0]['commit'] == 'abc'


def test_the_configuration_of_a_run_without_a_record_is_kept_too(tmp_path, task):
  (tmp_path / 'config.gin').write_text('old')
  continuation.record(tmp_path, 60, describe(task), {'config': 'new'})
  assert (tmp_path / 'config-1-60.gin').read_text() == 'old'
