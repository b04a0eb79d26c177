"""Plans of a tiny recipe, compiled for this machine as if it were a pod."""

import dataclasses
import json

import jax
import pytest

from cascades import losses, plan
from cascades.checkpoints import store
from cascades.data.corpus import Data
from cascades.models import configs, lora
from cascades.performance import chips, topologies
from cascades.runtime import partitioning
from cascades.training import optimizers, setup
from tests import tiny


@pytest.fixture(autouse=True)
def here(monkeypatch):
  """Eight virtual devices that are said to be v5e chips."""
  monkeypatch.setattr(
    topologies,
    'of',
    lambda name: topologies.Topology(name, chips.CHIPS[1], jax.devices()[:8], name != 'no libtpu'),
  )


def planned(topology, **changes):
  return plan.plan(topology, **tiny.arguments(plan.plan, **settings(**changes)))


def settings(**changes):
  return {
    'small': tiny.SMALL,
    'large': tiny.LARGE,
    'task_feature_lengths': tiny.LENGTHS,
    'batch_size': 16,
    'learning_rate': optimizers.constant(1e-2),
    'loss': losses.cat_dist,
    'mesh': lambda devices: partitioning.make_mesh(data=2, fsdp=4, devices=devices),
    'output': '',
  } | changes


@pytest.fixture(scope='module')
def compiled_plan(tmp_path_factory):
  path = tmp_path_factory.mktemp('plans') / 'plan.json'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      topologies,
      'of',
      lambda name: topologies.Topology(name, chips.CHIPS[1], jax.devices()[:8], True),
    )
    return planned('v5e:2x4', output=str(path)), json.loads(path.read_text())


def test_a_plan_counts_models_memory_work_and_collectives(compiled_plan):
  result, record = compiled_plan
  assert result.models == {
    name: configs.count_parameters(config)
    for name, config in (('small', tiny.SMALL), ('large', tiny.LARGE))
  }
  assert result.fits
  assert result.tokens == 16 * tiny.LENGTHS['targets']
  assert {'all-gather'} <= set(result.compiled.collectives)
  assert result.compiled.flops == pytest.approx(result.flops / 8, rel=0.05)
  assert 0 < result.mfu_bound < 1
  assert record['compiled']['flops'] == result.compiled.flops
  assert record['verdict'].startswith('fits: ')


def test_the_arguments_of_the_compiled_step_are_what_the_rules_place(compiled_plan):
  result, _ = compiled_plan
  placed = sum(result.device_bytes.values())
  assert result.compiled.memory.arguments == pytest.approx(placed, rel=0.01)


def test_without_libtpu_nothing_is_compiled():
  result = planned('no libtpu')
  assert result.compiled is None
  assert result.flops > 0


def test_models_without_a_size_have_room_for_bytes():
  def size(config):
    return dataclasses.replace(config, vocab_size=0)

  sized = planned('no libtpu', small=size(tiny.SMALL), large=size(tiny.LARGE))
  bytewise = dataclasses.replace(tiny.LARGE, vocab_size=384)
  assert sized.models['large'] == configs.count_parameters(bytewise)


def test_a_plan_does_not_ignore_a_teacher_cache():
  with pytest.raises(ValueError, match='does not read TEACHER_CACHE'):
    planned('no libtpu', teacher_cache='cache')


@pytest.mark.slow
def test_eight_bits_and_adapters_shrink_what_a_device_holds():
  wide = planned('no libtpu')
  narrow = planned('no libtpu', large_dtype='int8', adapters=lora.LoraConfig(rank=2))
  assert narrow.models == wide.models
  assert narrow.device_bytes['optimizer state'] < wide.device_bytes['optimizer state']
  assert narrow.device_bytes['trained parameters'] < wide.device_bytes['trained parameters'] / 2


def test_a_step_that_does_not_fit_is_a_result(monkeypatch):
  class Refusing:
    def lower(self, *arguments):
      return self

    def compile(self, compiler_options):
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Used 20.0G of 15.75G hbm.')

    def __call__(self, state, *arguments):
      return state.step

  monkeypatch.setattr(setup, 'compiled_step', lambda *_: Refusing())
  result = planned('v5e:2x4')
  assert result.fits is False
  assert result.compile_error == 'needs 20.0G of 15.75G'


def test_the_large_model_comes_from_its_checkpoint_if_it_is_there(tmp_path):
  store.write_description(tmp_path, {'model': configs.describe(tiny.LARGE)})
  given = {'large': None, 'large_checkpoint_path': str(tmp_path)}
  assert planned('no libtpu', **given).models['large'] == configs.count_parameters(tiny.LARGE)
  with pytest.raises(ValueError, match='--large_model'):
    planned('no libtpu', large=None, large_checkpoint_path=str(tmp_path / 'no'))


def test_packed_rows_carry_segments():
  data = Data(lengths={'inputs': 5, 'targets': 3}, batch_size=4)
  with partitioning.use(tiny.one_device()):
    from tests import testing

    unpacked = plan.batch_shapes(testing.TINY_DECODER, data)
    packed = plan.batch_shapes(testing.TINY_DECODER, dataclasses.replace(data, pack_length=32))
  assert unpacked.inputs.shape == (4, 8)
  assert unpacked.segments is None
  assert packed.segments.shape == packed.positions.shape == (4, 32)
