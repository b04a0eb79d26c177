"""Slow NumPy twins of the equations, written from the paper and not from our code."""

from __future__ import annotations

import math

import numpy as np


def log_softmax(row):
  top = max(row)
  return [x - top - math.log(sum(math.exp(v - top) for v in row)) for x in row]


def argmax(row):
  return max(range(len(row)), key=lambda v: (row[v], -v))


def cascade_loss(small, large, targets, weights, *, w, mask):
  """Token by token, entry by entry: equations 2, 3, 7, 8 and 11-14."""
  total, count = 0.0, 0.0
  for i, target in enumerate(targets):
    log_small = log_softmax(small[i])
    p_large = [math.exp(x) for x in log_softmax(large[i])]
    by_small, by_large = argmax(small[i]) == target, argmax(large[i]) == target
    counted = {'all': True, 'either': by_small or by_large, 'large': by_large, 'small': by_small}[
      mask
    ]
    hard = -log_small[target]
    soft = -sum(p * logp for p, logp in zip(p_large, log_small, strict=True))
    total += weights[i] * counted * (w * hard + (1 - w) * soft)
    count += weights[i]
  return total, count


def cascade_loss_gradient(small, large, targets, weights, *, w, mask):
  """`weight alpha (p_S - [w onehot(y) + (1 - w) p_L])`, the closed form of the gradient."""
  gradient = np.zeros_like(small, dtype=np.float64)
  for i, target in enumerate(targets):
    p_small = np.exp(log_softmax(small[i]))
    p_large = np.exp(log_softmax(large[i]))
    by_small, by_large = argmax(small[i]) == target, argmax(large[i]) == target
    counted = {'all': True, 'either': by_small or by_large, 'large': by_large, 'small': by_small}[
      mask
    ]
    onehot = np.eye(len(small[i]))[target]
    gradient[i] = weights[i] * counted * (p_small - (w * onehot + (1 - w) * p_large))
  return gradient


def kl(a, b):
  return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


def divergence(name, p, q, weight=None):
  """Divergences of the draft q from the target p, entry by entry; `weight` is beta or alpha."""
  pairs = list(zip(p, q, strict=True))
  if name == 'fkl':
    return kl(p, q)
  if name == 'rkl':
    return kl(q, p)
  if name == 'tvd':
    return 1 - sum(min(pair) for pair in pairs)
  mixture = [weight * x + (1 - weight) * y for x, y in pairs]
  if name == 'skew_fkl':
    return kl(p, mixture)
  if name == 'skew_rkl':
    return kl(q, [weight * y + (1 - weight) * x for x, y in pairs])
  return weight * kl(p, mixture) + (1 - weight) * kl(q, mixture)
