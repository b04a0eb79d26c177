"""LITE: a small network that scores a document by its token similarities with the query.

Ji et al. 2024, https://arxiv.org/abs/2406.17968. The separable form runs an MLP over each row of
the similarities S and then one over each column; the flattened form runs one over all of S. Both
see the positions of tokens, and padding as zeros, so lengths are fixed.
Axes: B batch, Q query tokens, L document tokens.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from cascades.models import bert, layers
from cascades.runtime import ranges


@dataclasses.dataclass(frozen=True)
class LiteConfig:
  """Sizes of a LITE scorer, those of the paper by default.

  Attributes:
    query_tokens: Tokens of a query, padded.
    document_tokens: Tokens of a document, padded.
    query_mlp: Hidden channels of the MLP over query tokens, the column step; m1 of the paper.
    document_mlp: Hidden channels of the MLP over document tokens, the row step; m2 of the paper.
      Those of the flattened form, which has one MLP.
    norm_eps: Added to the variance in norms.
  """

  query_tokens: int = 30
  document_tokens: int = 200
  query_mlp: int = 360
  document_mlp: int = 2400
  norm_eps: float = 1e-5

  def __post_init__(self) -> None:
    sizes = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    del sizes['norm_eps']
    ranges.check(sizes, least=1, integer=True)
    ranges.check({'norm_eps': self.norm_eps}, least=0)


def separable_parameters(config: LiteConfig) -> int:
  """Number of parameters of `Separable`.

      2 L m2 + m2 + L + 2 Q m1 + m1 + Q + L Q  weights and biases, and 2 (m2 + L + m1 + Q) of norms

  996,570 in the paper's sizes.
  """
  q, length = config.query_tokens, config.document_tokens
  m1, m2 = config.query_mlp, config.document_mlp
  maps = 2 * length * m2 + m2 + length + 2 * q * m1 + m1 + q + length * q
  return maps + 2 * (m2 + length + m1 + q)


class _Layer(nnx.Module):
  """LN(relu(x W + b)) over the last axis."""

  def __init__(self, inputs: int, outputs: int, key: Array, *, eps: float):
    stddev = (2 / inputs) ** 0.5  # of He et al. 2015, for ReLU
    self.kernel = layers.normal_parameter(key, (inputs, outputs), 'embed', 'mlp', stddev=stddev)
    self.bias = layers.parameter(jnp.zeros((outputs,)), 'mlp')
    self.norm = bert.LayerNorm(outputs, eps=eps)

  def __call__(self, x: Float[Array, '*n I']) -> Float[Array, '*n O']:
    return self.norm(jax.nn.relu(x @ self.kernel[...] + self.bias[...]))


class TokenMLP(nnx.Module):
  """Two layers over a token axis, which keep its length: LN(relu(W2 LN(relu(W1 x + b1)) + b2))."""

  def __init__(self, tokens: int, hidden: int, key: Array, *, eps: float):
    up, down = jax.random.split(key)
    self.up = _Layer(tokens, hidden, up, eps=eps)
    self.down = _Layer(hidden, tokens, down, eps=eps)

  def __call__(self, x: Float[Array, '*n L']) -> Float[Array, '*n L']:
    return self.down(self.up(x))


class Separable(nnx.Module):
  """Separable LITE: s = w^T vec(columns(rows(S))).

  The row step is the same for each query token, and the column step for each document token; the
  score is not, since `w` has a weight for each pair of positions.
  """

  def __init__(self, config: LiteConfig, key: Array):
    rows, columns, output = jax.random.split(key, 3)
    shape = config.query_tokens, config.document_tokens
    self.rows = TokenMLP(shape[1], config.document_mlp, rows, eps=config.norm_eps)
    self.columns = TokenMLP(shape[0], config.query_mlp, columns, eps=config.norm_eps)
    stddev = (shape[0] * shape[1]) ** -0.5
    self.output = layers.normal_parameter(output, shape, 'mlp', 'embed', stddev=stddev)

  def __call__(self, similarities: Float[Array, '*B Q L']) -> Float[Array, '*B']:
    rows = self.rows(similarities)
    columns = self.columns(jnp.swapaxes(rows, -1, -2))
    return jnp.einsum('...lq,ql->...', columns, self.output[...])


class Flattened(nnx.Module):
  """Flattened LITE: s = w^T LN(relu(W vec(S) + b)), an MLP over all similarities at once."""

  def __init__(self, config: LiteConfig, key: Array):
    hidden, output = jax.random.split(key)
    size = config.query_tokens * config.document_tokens
    self.hidden = _Layer(size, config.document_mlp, hidden, eps=config.norm_eps)
    stddev = config.document_mlp**-0.5
    self.output = layers.normal_parameter(output, (config.document_mlp,), 'mlp', stddev=stddev)

  def __call__(self, similarities: Float[Array, '*B Q L']) -> Float[Array, '*B']:
    flat = similarities.reshape(*similarities.shape[:-2], -1)
    return self.hidden(flat) @ self.output[...]


FORMS = {'lite': Separable, 'flattened_lite': Flattened}
