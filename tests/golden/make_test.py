from __future__ import annotations

import numpy as np
import pytest

from tests.golden import twins

pytestmark = pytest.mark.reference


@pytest.fixture(scope='module')
def make():
  pytest.importorskip('torch', reason="needs the extra 'reference': make reference")
  pytest.importorskip('transformers', reason="needs the extra 'reference': make reference")
  from tests.golden import make

  return make


@pytest.mark.parametrize('name', twins.CONFIGS)
def test_the_stored_logits_are_those_of_the_reference_implementation(make, name):
  golden = twins.load(name)
  # The logits of t5_1_1 amplify rounding: see tests/models/t5_test.py.
  tolerance = 2e-4 if name == 't5_1_1' else 1e-5
  np.testing.assert_allclose(make.reference_logits(name), golden['logits'], atol=tolerance)
  for key, rows in twins.inputs(twins.CONFIGS[name]).items():
    np.testing.assert_array_equal(golden[key], rows)


@pytest.mark.parametrize('name', twins.ENCODERS)
def test_the_stored_states_are_those_of_the_reference_implementation(make, name):
  golden = twins.load(name)
  np.testing.assert_allclose(make.reference_states(name), golden['states'], atol=1e-5)
  for key, rows in twins.texts().items():
    np.testing.assert_array_equal(golden[key], rows)


@pytest.mark.parametrize('bidirectional', [True, False])
def test_relative_buckets_are_those_of_the_reference_implementation(make, bidirectional):
  import torch
  from transformers.models.t5.modeling_t5 import T5Attention

  from cascades.models import positions

  distance = torch.arange(-128, 129)
  expected = T5Attention._relative_position_bucket(distance, bidirectional, 32, 128)
  got = positions.relative_buckets(bidirectional=bidirectional, num_buckets=32, max_distance=128)
  np.testing.assert_array_equal(got, expected.numpy())
