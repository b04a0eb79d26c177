"""The large model as the losses see it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades.teachers import Logits, as_teacher


def test_logits_answer_with_their_argmax_and_their_cross_entropy():
  teacher = Logits(jnp.log(jnp.array([[0.2, 0.5, 0.3]])))
  assert teacher.top1() == 1
  small = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  expected = 0.2 * np.log(2) + 0.5 * np.log(4) + 0.3 * np.log(4)
  np.testing.assert_allclose(teacher.cross_entropy(small), [expected], rtol=1e-6)


def test_the_large_model_gets_no_gradient():
  small = jax.nn.log_softmax(jnp.arange(6.0).reshape(2, 3))
  slope = jax.grad(lambda x: Logits(x).cross_entropy(small).sum())(jnp.ones((2, 3)))
  assert not slope.any()


def test_arrays_become_teachers_and_teachers_stay():
  teacher = Logits(jnp.ones((2, 3)))
  assert as_teacher(teacher, 3) is teacher
  assert as_teacher(None, 3) is None
  assert isinstance(as_teacher(np.ones((2, 3)), 3), Logits)
  with pytest.raises(ValueError, match='one vocabulary'):
    as_teacher(np.ones((2, 4)), 3)
