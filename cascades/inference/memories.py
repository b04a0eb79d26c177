"""A trained model with a memory, which is a language model like any other.

Its readout gives logarithms of the memory-augmented distribution, clipped and renormalized, so that
decoding, scoring and ranking need no other code. `resmem` has the equations.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from cascades import costs, resmem
from cascades.inference import memory_files, memory_index
from cascades.resmem import Datastore, Lookup
from cascades.runtime import files, partitioning, ranges
from cascades.types import Params

Combination: TypeAlias = Literal['resmem', 'knn_lm']
COMBINATIONS: tuple[Combination, ...] = ('resmem', 'knn_lm')


@dataclasses.dataclass(frozen=True)
class Recall:
  """A memory, and how its entries change the model's distribution.

  Attributes:
    path: Directory of the memory; None for the model alone.
    combine: 'resmem' adds residuals, 'knn_lm' interpolates with the neighbors' tokens.
    neighbors: Number of neighbors; None for the one that leave-one-out chose, like those below.
    bandwidth: Distance at which a weight falls by e.
    temperature: Divisor of the logits, in the residuals too.
    interpolation: Weight of the neighbors' tokens in 'knn_lm'.
  """

  path: str | None = None
  combine: Combination = 'resmem'
  neighbors: int | None = None
  bandwidth: float | None = None
  temperature: float | None = None
  interpolation: float | None = None

  def __post_init__(self) -> None:
    if self.combine not in COMBINATIONS:
      raise ValueError(f'COMBINE={self.combine!r:.80}; expected {" or ".join(COMBINATIONS)}.')
    ranges.check({'NEIGHBORS': self.neighbors}, least=1, integer=True)
    ranges.check({'BANDWIDTH': self.bandwidth}, above=0)
    ranges.check({'MEMORY_TEMPERATURE': self.temperature}, above=0)
    ranges.check({'INTERPOLATION': self.interpolation}, least=0, most=1)
    if self.combine == 'resmem' and self.interpolation is not None:
      raise ValueError(
        'INTERPOLATION mixes two distributions, and ResMem adds residuals: leave it out, or give '
        'COMBINE=knn_lm.'
      )
    given = (self.neighbors, self.bandwidth, self.temperature, self.interpolation)
    if self.path is None and (self.combine != 'resmem' or any(x is not None for x in given)):
      raise ValueError(
        'COMBINE, NEIGHBORS, BANDWIDTH, MEMORY_TEMPERATURE and INTERPOLATION are for a memory, and '
        'there is none: name its directory with MEMORY, or leave them out.'
      )

  def lookup(self, chosen: Mapping[str, Any]) -> Lookup:
    """The chosen lookup with the numbers that are given here."""
    own = {
      'k': self.neighbors,
      'sigma': self.bandwidth,
      'temperature': self.temperature,
      'interpolation': self.interpolation,
    }
    return Lookup(**{**chosen, **{name: x for name, x in own.items() if x is not None}})


class MemoryArrays(nnx.Module):
  """Entries of a memory among the parameters of a model."""

  def __init__(self, memory: Datastore):
    self.keys, self.tokens = nnx.Variable(memory.keys), nnx.Variable(memory.tokens)
    if memory.top_tokens is not None and memory.top_logprobs is not None:
      self.top_tokens = nnx.Variable(memory.top_tokens)
      self.top_logprobs = nnx.Variable(memory.top_logprobs)

  @property
  def memory(self) -> Datastore:
    """The entries as arrays."""
    stored = (self.top_tokens[...], self.top_logprobs[...]) if hasattr(self, 'top_tokens') else ()
    return Datastore(self.keys[...], self.tokens[...], *stored)


def logprobs(
  hidden: Float[Array, '*n D'],
  memory: Datastore,
  readout: Any,
  lookup: Lookup,
  search: resmem.Search = resmem.nearest,
) -> Float[Array, '*n V']:
  """Log-probabilities of the next token: augmented, clipped at `resmem.FLOOR`, renormalized.

  Args:
    hidden: Final states of the model.
    memory: Entries.
    readout: Logits of final states under the model alone.
    lookup: Combination with the neighbors.
    search: Search for neighbors.
  """
  states = hidden.reshape(-1, hidden.shape[-1])
  queries = states.astype(memory.keys.dtype)
  neighbors = search(queries, memory.keys, lookup.k)
  distance = resmem.distances(queries, memory.keys, neighbors)
  augmented = resmem.next_token(readout(states), distance, neighbors, memory, readout, lookup)
  return jnp.log(resmem.clip(augmented)).reshape(*hidden.shape[:-1], -1)


def remember(model: Any, memory: Datastore, lookup: Lookup, search: resmem.Search) -> Any:
  """The model with a memory: `hidden`, `prefill` and `extend` stay, `readout` is `logprobs`."""
  plain = type(model)

  def readout(self: Any, hidden: Array, table: Any = None) -> Array:
    alone = functools.partial(plain.readout, self, table=table)
    return logprobs(hidden, self.memory.memory, alone, lookup, search)

  model.__class__ = type(f'{plain.__name__}WithMemory', (plain,), {'readout': readout})
  model.memory = MemoryArrays(memory)
  return model


def attach(
  graph: nnx.GraphDef, params: Params, described: Mapping[str, Any], recall: Recall, width: int
) -> tuple[nnx.GraphDef, Params, dict[str, Any]]:
  """Attach a memory to a loaded model.

  Args:
    graph: Graph definition of the model.
    params: Its parameters, on the active mesh.
    described: Its description, for manifests.
    recall: The memory; its path is not None.
    width: Width of the final states.

  Returns:
    Graph definition, parameters and description of the model with its memory.

  Raises:
    FileNotFoundError: There is no memory.
    ValueError: It is of another checkpoint or vocabulary, incomplete, or the mesh has several
      devices.
  """
  if partitioning.active_mesh().size > 1:
    raise ValueError(
      f'MEMORY is searched on one device, and the mesh has {partitioning.active_mesh().size}: '
      'start the program on one, as with JAX_NUM_CPU_DEVICES=1 or CUDA_VISIBLE_DEVICES=0.'
    )
  directory = files.absolute(recall.path or '')
  manifest = memory_files.read_manifest(directory)
  memory_files.check_model(directory, manifest, model_keys(described, width))
  lookups = memory_files.read_lookups(directory, manifest)
  arrays = memory_files.read(directory, manifest)
  memory = on_device(arrays)
  lookup = recall.lookup(lookups['chosen'][recall.combine])
  if lookup.k > len(memory.keys):
    raise ValueError(
      f'NEIGHBORS={lookup.k}, and the memory {directory} has {len(memory.keys)} entries: ask for '
      'fewer.'
    )
  index = directory / memory_files.INDEX
  is_indexed = lookups['index'] is not None
  search = memory_index.search(index) if is_indexed else resmem.nearest
  model = remember(nnx.merge(graph, params), memory, lookup, search)
  own_graph, state = nnx.split(model)
  flops = costs.memory_lookup(
    len(memory.keys), width, lookup.k,
    vocab_size=0 if manifest['top'] or recall.combine == 'knn_lm' else manifest['vocab_size'],
  )  # fmt: skip
  digest = memory_files.fingerprint(manifest)
  described_memory = {
    'entries': len(memory.keys),
    'bytes': lookups['bytes'],
    'milliseconds_per_token': lookups['milliseconds_per_token'],
    'combine': recall.combine,
    **lookup._asdict(),
    'index': lookups['index'],
    'memory': digest,
  }
  return own_graph, nnx.to_pure_dict(state), {
    **described,
    'checkpoint_identity': f'{described["checkpoint_identity"]}\nmemory {digest}',
    'flops_per_token': described['flops_per_token'] + flops,
    'memory': described_memory,
  }  # fmt: skip


def model_keys(described: Mapping[str, Any], width: int) -> dict[str, Any]:
  """Keys of a memory's manifest that name its model."""
  return {
    'checkpoint_identity': memory_files.digest(described['checkpoint_identity']),
    'vocabulary': described['vocabulary'],
    'vocab_size': described['model']['vocab_size'],
    'width': width,
  }


def on_device(arrays: Mapping[str, Any]) -> Datastore:
  """The entries of files as arrays of JAX."""
  names = [name for name in Datastore._fields if name in arrays]
  return Datastore(**{name: jax.device_put(arrays[name]) for name in names})
