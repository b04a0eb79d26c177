"""Training losses of the small model: token loss x token mask.

A cell of the grid {cross-entropy, distillation mixture, divergences} x {all tokens, those that
either, the large or the small model predicts, ...} maps (small logits [*n, V], teachers, targets
[*n], weights [*n]) to (sum, count). Divide the sums of all devices and microbatches by the sum of
the counts: the number of valid target tokens, masked or not, so that the cells compare.

`teachers` are the frozen large models: a tuple, of one as a rule, and `()` if there is none. A
plain array of logits [*n, V] stands for one.

Wang et al. 2024, Cascade-Aware Training, https://arxiv.org/abs/2406.00060, equations 2-3, 7-14.
Zhou et al. 2024, DistillSpec, https://arxiv.org/abs/2310.08461, equation 2: `distillspec_*`.
Rabanser et al. 2025, Gatekeeper, https://arxiv.org/abs/2502.19335: `gatekeeper`.
Hu et al. 2025, AdaSPEC, https://arxiv.org/abs/2510.19779: `adaspec`.
No label smoothing, no z-loss; teachers are tempered (`rho`) only where a recipe asks for it.

`salt` is the loss of a large model that learns from a small one first: there the teacher is small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cascades import divergences, masks
from cascades.teachers import TeacherLike, Teachers, as_teachers, required

TokenLoss: TypeAlias = Callable[
  [Float[Array, '*n V'], Teachers, Int[Array, '*n']], Float[Array, '*n']
]
StepNumber: TypeAlias = Int[Array, ''] | int | None
Weight: TypeAlias = float | Callable[[StepNumber], Float[Array, '']]  # a constant, or a schedule


class CascadeLoss(Protocol):
  """A loss as a training step calls it; `small` are the logits of the model that is trained."""

  def __call__(
    self,
    small: Float[Array, '*n V'],
    teachers: TeacherLike | Sequence[TeacherLike],
    targets: Int[Array, '*n'],
    weights: Float[Array, '*n'],
    /,
    *,
    step: StepNumber = None,
  ) -> tuple[Float[Array, ''], Float[Array, '']]:
    """The sum of the tokens' losses, and the count of valid tokens; see `cascade_loss`."""
    ...


def cross_entropy(
  small: Float[Array, '*n V'], teachers: Teachers, targets: Int[Array, '*n']
) -> Float[Array, '*n']:
  """`l_i = -log p_S(y_i | x, y_<i)`. Per token: no masking, no mean."""
  del teachers
  return optax.softmax_cross_entropy_with_integer_labels(small, targets)


def distillation(
  small: Float[Array, '*n V'], teachers: Teachers, targets: Int[Array, '*n'], *, rho: float = 1.0
) -> Float[Array, '*n']:
  """`l_i = -sum_v p_L(v | x, y_<i) log p_S(v | x, y_<i)`, a cross-entropy and not a divergence:
  it exceeds KL(p_L || p_S) by the entropy of p_L, which has no gradient.

  With several teachers: the mean of their cross-entropies, which is the cross-entropy of the mean
  of their distributions. Hinton et al. 2015, https://arxiv.org/abs/1503.02531. Per token: no
  masking, no mean over tokens. A tempered teacher is `p_L^rho / sum p_L^rho`; the small model is
  not tempered, and the loss is not scaled by the temperature 1 / rho.

  Args:
    small: logits [*n V] of the small model.
    teachers: frozen large models.
    targets: unused.
    rho: exponent of the teachers' probabilities, above 0; below 1 it flattens them.

  Raises:
    ValueError: if rho is not above 0.
    TeacherError: if there is no teacher, or one that holds first choices only.
  """
  del targets
  if not rho > 0:
    raise ValueError(f'the exponent rho of the teacher must be above 0; it is {rho}.')
  logprobs = jax.nn.log_softmax(small)
  teachers = required(teachers)
  if rho != 1:
    teachers = tuple(teacher.tempered(rho, small.shape[-1]) for teacher in teachers)
  losses = [teacher.cross_entropy(logprobs) for teacher in teachers]
  return functools.reduce(jnp.add, losses) / len(losses)


def mixture(
  small: Float[Array, '*n V'],
  teachers: Teachers,
  targets: Int[Array, '*n'],
  *,
  w: Weight,
  rho: float = 1.0,
  step: StepNumber = None,
) -> Float[Array, '*n']:
  """`w * cross_entropy + (1 - w) * distillation`, w in [0, 1].

  Args:
    small: logits [*n V] of the small model.
    teachers: frozen large models; see `distillation` for several.
    targets: target tokens [*n].
    w: a constant, or a schedule `step -> w` such as optax's, whose values are not checked.
    rho: exponent of the teachers' probabilities; see `distillation`.
    step: the number of updates before this one, for a schedule.

  Raises:
    ValueError: if the constant w is outside [0, 1], rho is not above 0, or w is a schedule and
      `step` is None.
    TeacherError: as `distillation` does.
  """
  if callable(w):
    if step is None:
      raise ValueError('the weight w of the cross-entropy is a schedule: pass the `step` as well.')
    weight: float | Float[Array, ''] = w(step)
  elif 0 <= w <= 1:
    weight = w
  else:
    raise ValueError(f'the weight w of the cross-entropy must lie in [0, 1]; it is {w}.')
  hard = cross_entropy(small, teachers, targets)
  return weight * hard + (1 - weight) * distillation(small, teachers, targets, rho=rho)


def cascade_loss(
  small: Float[Array, '*n V'],
  teachers: TeacherLike | Sequence[TeacherLike],
  targets: Int[Array, '*n'],
  weights: Float[Array, '*n'],
  *,
  token_loss: TokenLoss,
  token_mask: masks.TokenMask,
  step: StepNumber = None,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """`(sum_i weights_i alpha_i l_i,  sum_i weights_i)` in float32.

  alpha is the token mask, recomputed from the current small model and constant for the gradient.

  Args:
    small: logits [*n V] of the small model, in any floating-point type.
    teachers: frozen large models, `()` without any, or the logits [*n V] of one.
    targets: target tokens [*n].
    weights: 1 on target tokens, end of sequence included, and 0 on prompts and padding; [*n].
    token_loss: l.
    token_mask: alpha.
    step: ignored. Every `CascadeLoss` is called with it; a loss whose weights follow a schedule
      binds it to its `token_loss`, as `dist` does.

  Returns:
    The sum of the losses, and the count of valid tokens, masked or not.

  Raises:
    TeacherError: if the loss or the mask asks for more than `teachers` hold.
    ValueError: if the vocabularies differ in size.
  """
  del step
  small = jnp.asarray(small, jnp.float32)
  teachers = as_teachers(teachers, small.shape[-1])
  scale = token_mask(jax.lax.stop_gradient(small), teachers, targets) * weights
  losses = jnp.where(scale > 0, token_loss(small, teachers, targets), 0.0)
  return jnp.sum(losses * scale), jnp.sum(weights)


def _mixture_loss(
  small: Float[Array, '*n V'],
  teachers: TeacherLike | Sequence[TeacherLike],
  targets: Int[Array, '*n'],
  weights: Float[Array, '*n'],
  *,
  token_mask: masks.TokenMask,
  w: Weight = 0.5,
  rho: float = 1.0,
  step: StepNumber = None,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """`cascade_loss` of the mixture, with its weight as an argument that recipes can bind."""
  token_loss = partial(mixture, w=w, rho=rho, step=step)
  return cascade_loss(
    small, teachers, targets, weights, token_loss=token_loss, token_mask=token_mask
  )


def _two_sided_loss(
  small: Float[Array, '*n V'],
  teachers: TeacherLike | Sequence[TeacherLike],
  targets: Int[Array, '*n'],
  weights: Float[Array, '*n'],
  *,
  sharpened: masks.TokenMask,
  softened: masks.TokenMask,
  a: float = 0.5,
  step: StepNumber = None,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """`a * cross_entropy` of the sharpened tokens `+ (1 - a) * KL(p_S || uniform)` of the softened.

  The small model becomes sure of the former and unsure of the latter, so that its confidence
  separates them; a second stage of training. Small a separates better, a near 1 answers better.
  Rabanser et al. 2025, Gatekeeper, https://arxiv.org/abs/2502.19335.

  Raises:
    ValueError: if a is outside [0, 1].
  """
  del step
  if not 0 <= a <= 1:
    raise ValueError(f'the weight a of the tokens to be sure of must lie in [0, 1]; it is {a}.')
  of = partial(cascade_loss, small, teachers, targets, weights)
  sure, count = of(token_loss=cross_entropy, token_mask=sharpened)
  unsure, _ = of(token_loss=divergences.kl_to_uniform, token_mask=softened)
  return a * sure + (1 - a) * unsure, count


def _share_loss(
  small: Float[Array, '*n V'],
  teachers: TeacherLike | Sequence[TeacherLike],
  targets: Int[Array, '*n'],
  weights: Float[Array, '*n'],
  *,
  token_loss: TokenLoss,
  token_score: TokenLoss,
  share: float = 0.4,
  sign: int = 1,
  step: StepNumber = None,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """`cascade_loss` of the share of the valid tokens with the largest `sign * token_score`.

  The share is that of the tokens of one call: of a training step, those of one block on one device,
  whose logits exist together. So no threshold must be known before, and no logits are computed
  twice. With `block_length` at the length of the targets it is the share of a device's batch.

  Raises:
    ValueError: if the share is outside (0, 1], or the sign is neither 1 nor -1.
  """
  del step
  if not 0 < share <= 1:
    raise ValueError(f'the share of the tokens must lie in (0, 1]; it is {share}.')
  if sign not in (1, -1):
    raise ValueError(f'the sign is {sign}: 1 takes the largest scores, -1 the smallest.')
  logits = jax.lax.stop_gradient(jnp.asarray(small, jnp.float32))
  scores = token_score(logits, as_teachers(teachers, logits.shape[-1]), targets)
  taken = masks.largest(sign * scores, weights > 0, share)
  return cascade_loss(
    small, teachers, targets, weights, token_loss=token_loss, token_mask=lambda *_: taken
  )


xent = partial(cascade_loss, token_loss=cross_entropy, token_mask=masks.all_tokens)
cat_xent = partial(cascade_loss, token_loss=cross_entropy, token_mask=masks.either_correct)
cat_xent_l = partial(cascade_loss, token_loss=cross_entropy, token_mask=masks.large_correct)
cat_xent_s = partial(cascade_loss, token_loss=cross_entropy, token_mask=masks.small_correct)
dist = partial(_mixture_loss, token_mask=masks.all_tokens)
cat_dist = partial(_mixture_loss, token_mask=masks.either_correct)
cat_dist_l = partial(_mixture_loss, token_mask=masks.large_correct)
cat_dist_s = partial(_mixture_loss, token_mask=masks.small_correct)

_divergence_loss = partial(cascade_loss, token_mask=masks.all_tokens)
distillspec_fkl = partial(_divergence_loss, token_loss=divergences.forward_kl)
distillspec_rkl = partial(_divergence_loss, token_loss=divergences.reverse_kl)
distillspec_jsd = partial(_divergence_loss, token_loss=divergences.jensen_shannon)
distillspec_tvd = partial(_divergence_loss, token_loss=divergences.total_variation)
distillspec_skew_fkl = partial(_divergence_loss, token_loss=divergences.skew_forward_kl)
distillspec_skew_rkl = partial(_divergence_loss, token_loss=divergences.skew_reverse_kl)

gatekeeper = partial(_two_sided_loss, sharpened=masks.small_correct, softened=masks.small_wrong)
# The large model says what is worth being unsure about.
cat_gatekeeper = partial(
  _two_sided_loss, sharpened=masks.either_correct, softened=masks.only_large_correct
)
adaspec = partial(_share_loss, token_loss=divergences.forward_kl, token_score=divergences.excess)


def salt(
  model: Float[Array, '*n V'],
  teachers: TeacherLike | Sequence[TeacherLike],
  targets: Int[Array, '*n'],
  weights: Float[Array, '*n'],
  *,
  omega: Weight,
  rho: float = 1.0,
  token_mask: masks.TokenMask = masks.all_tokens,
  step: StepNumber = None,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """`cascade_loss` of `(1 - omega) cross_entropy + omega distillation`, small model aided training.

  Here the teacher is the smaller model, and the larger one is trained. The distillation ends early:
  omega is a schedule such as `hard_switch`. Where no teacher runs any more (`teachers` is empty),
  and if omega is the constant 0, this is `xent`, operation by operation. Rawat et al. 2024,
  https://arxiv.org/abs/2410.18779.

  Args:
    model: logits [*n V] of the model that is trained.
    teachers: the frozen smaller model; `()` in steps without one.
    targets: target tokens [*n].
    weights: 1 on target tokens, and 0 on prompts and padding; [*n].
    omega: weight of the distillation, a constant in [0, 1] or a schedule of the step.
    rho: exponent of the teacher's probabilities; see `distillation`.
    token_mask: the tokens that count.
    step: the number of updates before this one, for a schedule.

  Raises:
    ValueError: as `mixture` does.
    TeacherError: if the teacher holds first choices only.
  """
  if omega == 0 or not as_teachers(teachers, model.shape[-1]):
    token_loss: TokenLoss = cross_entropy
  else:
    w = (lambda step: 1 - omega(step)) if callable(omega) else 1 - omega
    token_loss = partial(mixture, w=w, rho=rho, step=step)
  return cascade_loss(
    model, teachers, targets, weights, token_loss=token_loss, token_mask=token_mask
  )


def hard_switch(weight: float, *, steps: int) -> Weight:
  """A schedule: `weight` in the first `steps` steps, 0 in all later ones."""
  _check_weight(weight)
  return lambda step: jnp.where(jnp.asarray(step) < steps, weight, 0.0)


def linear_decay(weight: float, *, steps: int, decay_steps: int | None = None) -> Weight:
  """A schedule: `weight`, which falls to 0 during the last `decay_steps` of the first `steps`.

  By default it falls in all of them.

  Raises:
    ValueError: if the weight is outside [0, 1], or the decay is longer than `steps`.
  """
  _check_weight(weight)
  decay_steps = steps if decay_steps is None else decay_steps
  if not 1 <= decay_steps <= steps:
    raise ValueError(
      f'the weight of the distillation falls for {decay_steps} of its {steps} steps: let it fall '
      f'for 1 to {steps}.'
    )
  return optax.linear_schedule(weight, 0.0, decay_steps, transition_begin=steps - decay_steps)


def _check_weight(weight: float) -> None:
  if not 0 <= weight <= 1:
    raise ValueError(f'the weight of the distillation must lie in [0, 1]; it is {weight}.')
