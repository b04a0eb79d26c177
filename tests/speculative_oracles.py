"""Slow NumPy twins of the target distributions and of draft-and-verify, token by token."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np


def span(name):
  """Range of alpha that matters for distributions of a few tokens."""
  if name.startswith('opt'):
    return -4.0, 4.0
  if name in ('diff', 'token_v1', 'token_v2'):
    return -1.0, 1.0
  if name == 'diff_log':
    return -2.0, 2.0
  return 0.0, 2.0 if name in ('chow_log', 'bild') else 1.0


def alphas(name):
  low, high = span(name)
  return [low + x * (high - low) for x in (0.0, 0.31, 0.57, 0.83)]


def _entropy(d):
  return -sum(x * math.log(x) for x in d if x > 0)


def _variation(q, p):
  return sum(abs(a - b) for a, b in zip(q, p, strict=True)) / 2


def _token_rule(defers):
  """Equation 11 as a procedure: keep a draft, or draw afresh from p."""

  def rule(q, p, qu, pu, alpha):
    pi = np.zeros(len(q))
    for v in range(len(q)):
      if defers(v, qu, pu, alpha):
        pi += q[v] * p
      else:
        pi[v] += q[v]
    return pi

  return rule


def _choice(defers):
  return lambda q, p, qu, pu, alpha: p if defers(q, p, qu, pu, alpha) else q


def _lossy(f):
  """The law of the procedure: accept a draft with min(1, f(p) / q), else draw from the residual."""

  def rule(q, p, qu, pu, alpha):
    pi = np.zeros(len(q))
    residual = np.array([max(0.0, b - a) for a, b in zip(q, p, strict=True)])
    for v in range(len(q)):
      if q[v] == 0:
        continue
      accept = min(1.0, f(p[v], 1 - alpha) / q[v])
      pi[v] += q[v] * accept
      if accept < 1:
        pi += q[v] * (1 - accept) * residual / residual.sum()
    return pi

  return rule


def scale(q, p, alpha):
  """1 / beta of the normalized residual, by bisection."""
  rejected = np.maximum(0, q - p / (1 - alpha)).sum()
  low, high = 0.0, 1.0
  for _ in range(200):
    middle = (low + high) / 2
    if np.maximum(0, middle * p - q).sum() < rejected:
      low = middle
    else:
      high = middle
  return high


def _lossy_normalized(q, p, qu, pu, alpha):
  return np.maximum(np.minimum(q, p / (1 - alpha)), scale(q, p, alpha) * p)


RULES = {
  'small': lambda q, p, qu, pu, alpha: q,
  'large': lambda q, p, qu, pu, alpha: p,
  'lossless': lambda q, p, qu, pu, alpha: p,
  'ensemble': lambda q, p, qu, pu, alpha: alpha * p + (1 - alpha) * q,
  'lossy': _lossy(lambda p, e: p / e),
  'lossy_square': _lossy(lambda p, e: p / e**2),
  'lossy_power': _lossy(lambda p, e: p**e if p > 0 else 0),
  'lossy_normalized': _lossy_normalized,
  'chow': _choice(lambda q, p, qu, pu, alpha: max(qu) < 1 - alpha),
  'chow_log': _choice(lambda q, p, qu, pu, alpha: _entropy(qu) > alpha),
  'diff': _choice(lambda q, p, qu, pu, alpha: max(qu) < max(pu) - alpha),
  'diff_log': _choice(lambda q, p, qu, pu, alpha: _entropy(qu) > _entropy(pu) + alpha),
  'opt': _choice(lambda q, p, qu, pu, alpha: max(qu) < max(pu) - alpha * _variation(q, p)),
  'opt_log': _choice(
    lambda q, p, qu, pu, alpha: _entropy(qu) > _entropy(pu) + alpha * _variation(q, p)
  ),
  'bild': _choice(lambda q, p, qu, pu, alpha: -math.log(pu[np.argmax(qu)]) > alpha),
  'token_v1': _token_rule(lambda v, qu, pu, alpha: qu[v] < max(pu) - alpha),
  'token_v2': _token_rule(lambda v, qu, pu, alpha: pu[v] < max(pu) - alpha),
  'token_v3': _token_rule(lambda v, qu, pu, alpha: pu[v] < (1 - alpha) * max(pu)),
  'typical': _token_rule(
    lambda v, qu, pu, alpha: pu[v] < min(alpha, math.sqrt(alpha) * math.exp(-_entropy(pu)))
  ),
}


def child(node, token, V=3):
  """Row of a tabular model after one more token; row 0 is the empty prefix."""
  return V * node + 1 + token


def law(q, pi, residual, *, gamma, length=3, bonus=None):
  """Law of the first `length` tokens of draft-and-verify, by enumeration of all its outcomes.

  Args:
    q: Small model [rows, V], in the rows of `child`.
    pi: Target distributions [rows, V].
    residual: Residual distributions [rows, V].
    gamma: Drafts a block.
    length: Tokens.
    bonus: Distributions of the token after a fully accepted block; None for pi.
  """
  V = q.shape[1]
  tables = [x.tolist() for x in (q, pi, residual, pi if bonus is None else bonus)]
  done, open_prefixes = defaultdict(float), {(): 1.0}
  while open_prefixes:
    following = defaultdict(float)
    for prefix, mass in open_prefixes.items():
      for block, probability in _block(prefix, *tables, gamma).items():
        tokens = (prefix + block)[:length]
        (done if len(tokens) == length else following)[tokens] += mass * probability
    open_prefixes = following
  return np.array([done[x] for x in itertools.product(range(V), repeat=length)])


def _block(prefix, q, pi, residual, bonus, gamma):
  V = len(q[0])
  outcomes = defaultdict(float)
  for drafts in itertools.product(range(V), repeat=gamma):
    nodes = [0]
    for token in prefix + drafts:
      nodes.append(child(nodes[-1], token, V))
    nodes = nodes[len(prefix) :]
    drawn = math.prod(q[node][d] for node, d in zip(nodes, drafts, strict=False))
    reached = drawn
    for j, d in enumerate(drafts):
      accept = min(1.0, pi[nodes[j]][d] / q[nodes[j]][d])
      for y in range(V):
        outcomes[(*drafts[:j], y)] += reached * (1 - accept) * residual[nodes[j]][y]
      reached *= accept
    for y in range(V):
      outcomes[(*drafts, y)] += reached * bonus[nodes[gamma]][y]
  return outcomes


def product_law(pi, *, length=3):
  """`prod_t pi(x_t | x_<t)` of every sequence of tokens."""
  V = pi.shape[1]
  probabilities = []
  for tokens in itertools.product(range(V), repeat=length):
    node, probability = 0, 1.0
    for token in tokens:
      probability *= pi[node, token]
      node = child(node, token, V)
    probabilities.append(probability)
  return np.array(probabilities)
