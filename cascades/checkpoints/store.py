"""Checkpoints of a run directory, through Orbax: `MODEL_DIR/checkpoint_N/state`.

Beside them `model.json` says which model and vocabulary the numbers belong to, so that a
directory is all that inference, or another run, needs to be told. Directories may be remote.
Checkpoints of a run with `lora` hold adapters, and `MODEL_DIR/base` the weights that they adapt.
"""

from __future__ import annotations

import functools
import json
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, TypeAlias

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from cascades import files, lora, quantization

Which: TypeAlias = int | Literal['last', 'best']
Name: TypeAlias = tuple[str, ...]  # of a parameter

DESCRIPTION = 'model.json'
MANIFEST = 'manifest.json'  # of a run that was not trained: what it was made from, and how
LORA = 'lora'  # of a description: the `lora.Config` of a run that trains adapters
BASE = 'base'  # beside its checkpoints: the weights that the adapters belong to, as it holds them
_PREFIX = 'checkpoint'


class CheckpointError(ValueError):
  """A checkpoint that is not there, not whole, or not of the model that is asked for."""


class Checkpoints:
  """The checkpoints of one run: the newest `keep`, and the one of lowest validation loss.

  Saving copies the state and returns; the writing goes on beside the next steps. A checkpoint
  counts only once it is whole: Orbax renames it into place, or marks it on object stores.
  """

  def __init__(self, directory: epath.PathLike, *, keep: int = 1):
    policies = ocp.checkpoint_managers
    keep_policy = policies.AnyPreservationPolicy(
      [
        policies.LatestN(keep),
        policies.BestN(get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False),
      ]
    )
    self._directory = files.absolute(directory)
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        step_prefix=_PREFIX,
        best_fn=_quality,  # without it Orbax does not write the metrics that its policies read
        preservation_policy=keep_policy,
        cleanup_tmp_directories=True,
      ),
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType
  ) -> None:
    self._manager.close()

  def latest(self) -> int | None:
    """The step of the newest whole checkpoint."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, *, validation_loss: float | None = None) -> None:
    """Write `state` in the background; a step that is there already is left alone."""
    if step in self._manager.all_steps():
      return
    metrics = None if validation_loss is None else {'loss': validation_loss}
    self._manager.save(
      step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), metrics=metrics
    )

  def restore(self, step: int, like: Any) -> Any:
    """The state of `step`, placed and typed as `like` (arrays or their abstract twins).

    Raises CheckpointError, naming the arrays, if the checkpoint holds others.
    """
    return _restore(self._directory / f'{_PREFIX}_{step}' / 'state', like)

  def save_base(self, params: Any) -> None:
    """Write the frozen weights that the checkpoints' adapters belong to, and wait for it."""
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(self._directory / BASE, {'params': params}, force=True)

  def restore_base(self, like: Any) -> Any:
    """What `save_base` wrote, placed and held as `like`."""
    return _params(self._directory / BASE, like)


def is_made(
  directory: epath.PathLike, description: Mapping[str, Any], origin: Mapping[str, Any]
) -> bool:
  """Whether a run that is made of other weights, not trained, is there already.

  Raises CheckpointError, naming what differs, if the directory holds another.
  """
  check_description(directory, description)
  check_description(directory, origin, MANIFEST)
  return latest(directory) is not None


def make(
  directory: epath.PathLike,
  params: Any,
  description: Mapping[str, Any],
  origin: Mapping[str, Any],
  *,
  config: str = '',
) -> None:
  """Write such a run: what it is, what it was made of, its settings, and checkpoint 0."""
  directory = files.absolute(directory)
  with Checkpoints(directory) as checkpoints:
    if jax.process_index() == 0:
      write_description(directory, description)
      write_description(directory, origin, MANIFEST)
      files.write(directory / 'config.gin', config)
    checkpoints.save(0, {'params': params})


def restore_params(path: epath.PathLike, like: Any, *, which: Which = 'last') -> Any:
  """Only the parameters of a run (MODEL_DIR) or of one checkpoint (MODEL_DIR/checkpoint_N).

  Adapters are merged into their base. `like` says where each array goes and how it is held there;
  those that change on the way come one after another, so that only one at a time is there twice.
  """
  directory, step = locate(path, which)
  state, base = directory / f'{_PREFIX}_{step}' / 'state', directory / BASE
  if not base.exists():
    return _params(state, like)
  shapes, flat = _shapes(_metadata(state)), traverse_util.flatten_dict(like)
  thin = {}
  for name, leaf in flat.items():
    if (*name, 'down') in shapes:
      place = NamedSharding(quantization.wide(leaf).sharding.mesh, PartitionSpec())
      thin[name] = lora.Adapter._make(
        jax.ShapeDtypeStruct(shapes[*name, part], 'float32', sharding=place)
        for part in lora.Adapter._fields
      )
  adapters = traverse_util.flatten_dict(_params(state, traverse_util.unflatten_dict(thin)))
  scale = lora.Config(**read_description(directory)[LORA]).scale
  merge = functools.partial(lora.merge, scale=scale)
  merges = {name: functools.partial(merge, adapter=pair) for name, pair in adapters.items()}
  return _params(base, like, merges)


def latest(directory: epath.PathLike) -> int | None:
  """The step of the newest whole checkpoint of a run, if there is one.

  Touches nothing, and no process waits for another: Orbax's manager does, if the directory exists.
  """
  found = files.absolute(directory).glob(f'{_PREFIX}_*')
  named = {path: re.fullmatch(rf'{_PREFIX}_(\d+)', path.name) for path in found}
  steps = [
    int(name[1]) for path, name in named.items() if name and ocp.utils.is_checkpoint_finalized(path)
  ]
  return max(steps, default=None)


def locate(path: epath.PathLike, which: Which = 'last') -> tuple[epath.Path, int]:
  """Run directory and step of a checkpoint, given as MODEL_DIR or MODEL_DIR/checkpoint_N.

  `which` says the step in the first case: a number, the last, or the one of lowest validation
  loss. Raises CheckpointError, naming what is there, if it is not.
  """
  path = files.absolute(path)
  if named := re.fullmatch(rf'{_PREFIX}_(\d+)', path.name):
    path, which = path.parent, int(named[1])
  if not path.is_dir():
    raise CheckpointError(f'there is no run directory {path}: train it first, or mend the path.')
  manager = ocp.CheckpointManager(
    path,
    options=ocp.CheckpointManagerOptions(step_prefix=_PREFIX, best_fn=_quality, read_only=True),
  )
  steps = sorted(manager.all_steps())
  if not steps:
    raise CheckpointError(
      f'{path} holds no whole checkpoint ({_PREFIX}_N): the run has not saved one yet.'
    )
  if which == 'last':
    return path, steps[-1]
  if which == 'best':
    return path, max(steps, key=lambda step: (_quality(manager.metrics(step)), step))
  if which not in steps:
    there = ', '.join(map(str, steps))
    raise CheckpointError(f'{path} holds no checkpoint of step {which}; it holds: {there}.')
  return path, which


def identity(directory: epath.PathLike, step: int) -> str:
  """Tells a checkpoint from any that was, or will be, written in its place."""
  return (epath.Path(directory) / f'{_PREFIX}_{step}' / '_CHECKPOINT_METADATA').read_text()


def check_description(
  directory: epath.PathLike, description: Mapping[str, Any], file: str = DESCRIPTION
) -> None:
  """Raises CheckpointError, naming what differs, if the directory says something else."""
  path = epath.Path(directory) / file
  if not path.exists():
    return
  found, wanted = _flat(read_json(path)), _flat(json.loads(_text(description)))
  different = [
    f'{key} is {found.get(key)!r} there and {wanted.get(key)!r} here'
    for key in dict.fromkeys((*wanted, *found))
    if found.get(key) != wanted.get(key)
  ]
  if different:
    raise CheckpointError(
      f'{directory} belongs to another run: {"; ".join(different)}. Choose another MODEL_DIR, or '
      'remove that one.'
    )


def write_description(
  directory: epath.PathLike, description: Mapping[str, Any], file: str = DESCRIPTION
) -> None:
  """Say what the run's checkpoints are, unless the directory says so already."""
  check_description(directory, description, file)
  path = epath.Path(directory) / file
  if not path.exists():
    files.write(path, _text(description))


def _text(description: Mapping[str, Any]) -> str:
  return json.dumps(description, indent=2, allow_nan=False) + '\n'


def _flat(description: Mapping[str, Any]) -> dict[str, Any]:
  """One level of nesting less, for messages that name what differs and nothing else."""
  flat: dict[str, Any] = {}
  for key, value in description.items():
    flat |= {f'{key} {k}': v for k, v in value.items()} if isinstance(value, dict) else {key: value}
  return flat


def run_of(path: epath.PathLike) -> epath.Path:
  """The run directory that `path` is, or lies in."""
  path = epath.Path(path)
  return path.parent if re.fullmatch(rf'{_PREFIX}_\d+', path.name) else path


def read_description(path: epath.PathLike) -> dict[str, Any]:
  """What the checkpoints of a run directory, or of the one that `path` lies in, are."""
  directory = run_of(path)
  file = directory / DESCRIPTION
  if not file.exists():
    raise CheckpointError(
      f'{directory} is not a run directory: {DESCRIPTION} is missing. Give the MODEL_DIR of a '
      'training run, or one of its checkpoints.'
    )
  return read_json(file)


def read_json(file: epath.Path) -> dict[str, Any]:
  """What a file says. Raises CheckpointError if it is damaged."""
  try:
    return json.loads(file.read_text())
  except ValueError as error:
    raise CheckpointError(
      f'{file} is damaged ({error}): copy it again from where it was whole.'
    ) from error


def _quality(metrics: Mapping[str, float] | None) -> float:
  return -metrics['loss'] if metrics else -float('inf')


def _params(
  path: epath.Path,
  like: Any,
  changes: Mapping[Name, Callable[[Any], Any]] = types.MappingProxyType({}),
) -> Any:
  """Parameters as `like` holds them, some of them changed.

  Those and the ones that are held otherwise on disk come one by one.
  """
  tree = _metadata(path)
  shapes, flat = _shapes(tree), traverse_util.flatten_dict(like)

  def stored(name: Name, leaf: Any) -> Any:
    scale = shapes.get((*name, 'scale'))
    if name not in changes and isinstance(leaf, quantization.Quantized) == (scale is not None):
      return leaf
    wide = quantization.wide(leaf)
    return wide if scale is None else quantization.abstract(wide, scale)

  there = {name: stored(name, leaf) for name, leaf in flat.items()}
  _check_arrays(path, tree, {'params': traverse_util.unflatten_dict(there)})
  load = lambda some: traverse_util.flatten_dict(
    _load(path, {'params': traverse_util.unflatten_dict(some)})['params']
  )
  alike = {name: leaf for name, leaf in flat.items() if there[name] is leaf}
  found = load(alike) if alike else {}
  for name in (name for name in flat if name not in alike):
    (weight,) = load({name: there[name]}).values()
    found[name] = quantization.held_as(changes.get(name, lambda same: same)(weight), flat[name])
  return traverse_util.unflatten_dict(found)


def _shapes(tree: Any) -> dict[Name, tuple[int, ...]]:
  """The shapes of all parameters on disk."""
  flat = traverse_util.flatten_dict(tree.get('params', {}))
  return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def _metadata(path: epath.Path) -> Any:
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    try:
      return checkpointer.metadata(path).item_metadata.tree
    except (FileNotFoundError, ValueError, KeyError, AttributeError) as error:
      raise CheckpointError(f'{path} is not a whole checkpoint: {error}.') from error


def _restore(path: epath.Path, like: Any) -> Any:
  """All of `like`, or an error that names what is not there."""
  _check_arrays(path, _metadata(path), like)
  return _load(path, like)


def _load(path: epath.Path, like: Any) -> Any:
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    try:
      return checkpointer.restore(
        path,
        args=ocp.args.PyTreeRestore(
          item=abstract,
          restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
          partial_restore=True,
        ),
      )
    except (ValueError, OSError) as error:
      raise CheckpointError(f'{path} is damaged: {error}') from error


def _check_arrays(path: epath.Path, found: Any, wanted: Any) -> None:
  """Every wanted array is there in its shape, or an error names all that are not."""
  shapes = {name: tuple(leaf.shape) for name, leaf in _leaves(found)}
  problems = [
    f'{name} is {shapes.get(name, "missing")}, expected {tuple(leaf.shape)}'
    for name, leaf in _leaves(wanted)
    if shapes.get(name) != tuple(leaf.shape)
  ]
  if problems:
    more = f' (and {len(problems) - 5} more)' if len(problems) > 5 else ''
    raise CheckpointError(
      f'{path} is a checkpoint of another model: {"; ".join(problems[:5])}{more}.'
    )


def _leaves(tree: Any) -> list[tuple[str, Any]]:
  return [
    (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if hasattr(leaf, 'shape')
  ]
