"""Logits of T5X's scanned T5 and its decoder-only example, slowly, from its arrays.

After t5x/examples/{scalable_t5,decoder_only}/{network,layers}.py; float64, one query at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]


def bucket(distance: int, *, bidirectional: bool, num_buckets: int, max_distance: int) -> int:
  """The published definition, one distance at a time, in float32 as T5X computes it."""
  offset, far = 0, -distance
  if bidirectional:
    num_buckets //= 2
    offset += num_buckets if far < 0 else 0
    far = abs(far)
  else:
    far = max(far, 0)
  exact = num_buckets // 2
  if far < exact:
    return offset + far
  growth = np.log(np.float32(far) / exact + np.finfo(np.float32).eps) / np.log(max_distance / exact)
  return offset + min(exact + int(growth * (num_buckets - exact)), num_buckets - 1)


def scanned_t5(arrays: Arrays, inputs: np.ndarray, targets: np.ndarray, encoder: np.ndarray):
  """Logits of the scanned T5, whose layers lie on axis 1."""
  embedding = _wide(arrays['token_embedder/embedding'])
  x = embedding[encoder]
  seen = encoder > 0
  for get in _layers(arrays, 'encoder'):
    mask = seen[:, :, None] & seen[:, None]
    y = _norm(x, get('pre_attention_layer_norm/scale'))
    x = x + _attention(get, 'attention', y, y, mask, get('relpos_bias/rel_embedding'), True)
    x = x + _mlp(get, _norm(x, get('pre_mlp_layer_norm/scale')))
  encoded = _norm(x, arrays['encoder/encoder_norm/scale'])

  x, written = embedding[inputs], targets > 0
  mask = decoder_mask(targets)
  for get in _layers(arrays, 'decoder'):
    y = _norm(x, get('pre_self_attention_layer_norm/scale'))
    x = x + _attention(get, 'self_attention', y, y, mask, get('relpos_bias/rel_embedding'), False)
    y = _norm(x, get('pre_cross_attention_layer_norm/scale'))
    cross = written[:, :, None] & seen[:, None]
    x = x + _attention(get, 'encoder_decoder_attention', y, encoded, cross, None, False)
    x = x + _mlp(get, _norm(x, get('pre_mlp_layer_norm/scale')))
  return _logits(arrays, embedding, _norm(x, arrays['decoder/decoder_norm/scale']))


def decoder_only(
  arrays: Arrays,
  inputs: np.ndarray,
  targets: np.ndarray,
  *,
  causal_attention: np.ndarray | None = None,
  segments: np.ndarray | None = None,
) -> np.ndarray:
  """Logits of the decoder-only example, whose layers share their biases or have their own."""
  embedding = _wide(arrays['decoder/token_embedder/embedding'])
  x, shared = embedding[inputs], arrays.get('decoder/relpos_bias/rel_embedding')
  mask = decoder_mask(targets, causal_attention, segments)
  for get in _layers(arrays, 'decoder'):
    table = get('relpos_bias/rel_embedding') if shared is None else shared
    y = _norm(x, get('pre_self_attention_layer_norm/scale'))
    x = x + _attention(get, 'self_attention', y, y, mask, table, False)
    x = x + _mlp(get, _norm(x, get('pre_mlp_layer_norm/scale')))
  return _logits(arrays, embedding, _norm(x, arrays['decoder/decoder_norm/scale']))


def decoder_mask(
  targets: np.ndarray,
  causal_attention: np.ndarray | None = None,
  segments: np.ndarray | None = None,
) -> np.ndarray:
  """`make_decoder_mask`, element by element."""
  B, T = targets.shape
  mask = np.zeros((B, T, T), bool)
  for b, t, s in np.ndindex(B, T, T):
    prefix = causal_attention is not None and causal_attention[b, t] and causal_attention[b, s]
    same = segments is None or segments[b, t] == segments[b, s]
    mask[b, t, s] = (s <= t or prefix) and same and targets[b, t] > 0 and targets[b, s] > 0
  return mask


def _layers(arrays: Arrays, stack: str) -> list[Callable[[str], np.ndarray]]:
  """A getter of each layer's parameters."""
  scan = next((s for s in (stack, 'layers') if f'{stack}/{s}/mlp/wo/kernel' in arrays), None)
  if scan:
    num = arrays[f'{stack}/{scan}/mlp/wo/kernel'].shape[1]
    return [lambda name, i=i: arrays[f'{stack}/{scan}/{name}'].take(i, 1) for i in range(num)]
  num = sum(f'{stack}/layers_{i}/mlp/wo/kernel' in arrays for i in range(99))
  return [lambda name, i=i: arrays[f'{stack}/layers_{i}/{name}'] for i in range(num)]


def _attention(get, name, x, source, mask, table, bidirectional) -> np.ndarray:
  """No 1 / sqrt(d); what is masked gets -1e10; `table` is (heads, buckets)."""
  out = _wide(get(f'{name}/out/kernel'))
  heads = out.shape[0] if table is None and out.ndim == 3 else len(table)
  split = lambda projection, y: (y @ _flat(get(f'{name}/{projection}/kernel'))).reshape(
    *y.shape[:2], heads, -1
  )
  query, key, value = split('query', x), split('key', source), split('value', source)
  read = np.zeros_like(query)
  for b, t, n in np.ndindex(*query.shape[:3]):
    logits = key[b, :, n] @ query[b, t, n]
    for s in range(len(logits)):
      logits[s] += 0.0 if mask[b, t, s] else -1e10
      if table is not None:
        reach = {'num_buckets': table.shape[1], 'max_distance': 128}
        logits[s] += table[n, bucket(s - t, bidirectional=bidirectional, **reach)]
    weights = np.exp(logits - logits.max())
    read[b, t, n] = weights / weights.sum() @ value[b, :, n]
  return read.reshape(*x.shape[:2], -1) @ out.reshape(-1, out.shape[-1])


def _mlp(get: Callable[[str], np.ndarray], x: np.ndarray) -> np.ndarray:
  """T5 1.1's GeGLU, in gelu's tanh form, or T5 1.0's relu."""
  try:
    gate, linear = x @ _wide(get('mlp/wi_0/kernel')), x @ _wide(get('mlp/wi_1/kernel'))
    cube = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
    inner = 0.5 * gate * (1 + np.tanh(cube)) * linear
  except KeyError:
    inner = np.maximum(x @ _wide(get('mlp/wi/kernel')), 0)
  return inner @ _wide(get('mlp/wo/kernel'))


def _norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def _logits(arrays: Arrays, embedding: np.ndarray, x: np.ndarray) -> np.ndarray:
  dense = arrays.get('decoder/logits_dense/kernel')
  return x @ embedding.T / np.sqrt(x.shape[-1]) if dense is None else x @ _wide(dense)


def _wide(x: np.ndarray) -> np.ndarray:
  return x.astype(np.float64)


def _flat(kernel: np.ndarray) -> np.ndarray:
  return _wide(kernel).reshape(len(kernel), -1)
