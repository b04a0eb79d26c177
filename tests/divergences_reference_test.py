"""Divergences against those of TRL's DistillationTrainer, the same numbers in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import losses
from cascades.divergences import jensen_shannon

pytestmark = pytest.mark.reference
CELLS = {
  0.0: losses.distillspec_fkl,
  1.0: losses.distillspec_rkl,
  0.1: functools.partial(
    losses.distillspec_jsd, token_loss=functools.partial(jensen_shannon, beta=0.1)
  ),
  0.5: losses.distillspec_jsd,
  0.9: functools.partial(
    losses.distillspec_jsd, token_loss=functools.partial(jensen_shannon, beta=0.9)
  ),
}


@pytest.mark.parametrize('vocab', [104, 40_000])  # more than a chunk of TRL's
@pytest.mark.parametrize('beta', CELLS)
def test_losses_and_gradients_equal_those_of_trl(beta, vocab):
  torch = pytest.importorskip('torch', reason='needs the extra `reference`')
  kernels = pytest.importorskip(
    'trl.kernels.chunked_divergence', reason='needs TRL 1.16 or later, of the extra `reference`'
  )
  rng = np.random.default_rng(0)
  hidden = 3 * rng.normal(size=(2, 6, 8)).astype(np.float32)
  tables = rng.normal(size=(2, vocab, 8)).astype(np.float32) / 2
  given = [torch.tensor(array) for array in (hidden[0], tables[0], hidden[1], tables[1])]
  given[0].requires_grad_()
  by_token, _ = kernels.ChunkedDivergenceFunction.apply(
    given[0], given[1], None, given[2], given[3], None, beta
  )
  by_token.sum().backward()

  def loss(small_hidden):
    small, large = small_hidden @ tables[0].T, jnp.asarray(hidden[1] @ tables[1].T)
    return CELLS[beta](small, large, jnp.zeros(6, int), jnp.ones(6))[0]

  value, gradient = jax.value_and_grad(loss)(jnp.asarray(hidden[0]))
  np.testing.assert_allclose(value, by_token.detach().sum(), rtol=1e-5)
  # Both sum 40,000 products in float32, in another order.
  np.testing.assert_allclose(gradient, given[0].grad, atol=2e-4)
