"""Sizes of a model in a file, compared with its tensors before anything is built of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cascades.checkpoints.store import CheckpointError

_LAYERS = ('num_layers', 'num_encoder_layers', 'num_decoder_layers')
_SMALL = 1 << 20  # up to here the table of tensors names what does not fit, at no cost
_AXES = ('vocab_size', 'emb_dim', 'mlp_dim', 'num_positions', 'num_segments')


def check(origin: str, description: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
  """Raises CheckpointError for a model that is larger than the tensors of its file.

  Args:
    origin: path of the file, for messages.
    description: of the model, as in model.json.
    shapes: shape of every tensor in the file, by name.
  """
  longest = max((max(leaf.shape, default=0) for leaf in shapes.values()), default=0)
  for field in _LAYERS:
    if description.get(field, 0) > len(shapes):
      raise CheckpointError(
        f'{origin}: the configuration has {field}={description[field]}, and there are '
        f'{len(shapes)} tensors: the two are not of one model.'
      )
  sizes = {field: description.get(field) or 0 for field in _AXES}
  if 'head_dim' in description:
    sizes['num_heads x head_dim'] = description['num_heads'] * description['head_dim']
  for field, size in sizes.items():
    if size > max(longest, _SMALL):
      raise CheckpointError(
        f'{origin}: the configuration has {field}={size}, and the longest axis of its tensors has '
        f'{longest}: the two are not of one model.'
      )
