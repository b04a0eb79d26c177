"""Table of chips."""

import types

import jax
import pytest

from cascades.performance import chips


@pytest.mark.parametrize(
  ('device_kind', 'name'),
  [('TPU v4', 'v4'), ('TPU v5 lite', 'v5e'), ('TPU v5', 'v5p'), ('TPU v6 lite', 'v6e')],
)
def test_a_device_has_the_chip_of_its_kind(device_kind, name):
  assert chips.of(types.SimpleNamespace(device_kind=device_kind)).name == name


def test_a_cpu_is_no_chip():
  assert chips.of(jax.devices('cpu')[0]) is None


@pytest.mark.parametrize('chip', chips.CHIPS, ids=lambda chip: chip.name)
def test_products_of_wide_matrices_are_bound_by_compute(chip):
  """Wrong units show: all of these chips do hundreds of FLOPs per byte that they read."""
  assert 150 < chip.flops / chip.hbm_bandwidth < 700
  assert 3 < chip.hbm_bandwidth / chip.ici_bandwidth < 6
  assert 1e10 < chip.hbm < 1.1e11
