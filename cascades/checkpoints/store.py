"""Checkpoints of a run directory, through Orbax: `MODEL_DIR/checkpoint_N/state`.

Beside them `model.json` says which model and vocabulary the numbers belong to, so that a
directory is all that inference, or another run, needs to be told. Directories may be remote.
Checkpoints of a run with `lora` hold adapters, and `MODEL_DIR/base` the weights that they adapt.
A damaged checkpoint is never read: who asks for the newest or the best gets the next one, loudly.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, TypeAlias

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from cascades.checkpoints import arrays, checksums, finished
from cascades.checkpoints.finished import CheckpointError
from cascades.models import lora, quantization
from cascades.runtime import files

log = logging.getLogger(__name__)

Which: TypeAlias = int | Literal['last', 'best']

DESCRIPTION = 'model.json'
MANIFEST = 'manifest.json'  # of a run that was not trained: what it was made from, and how
LORA = 'lora'  # of a description: the `lora.Config` of a run that trains adapters
BASE = 'base'  # beside its checkpoints: the weights that the adapters belong to, as it holds them


class SaveError(CheckpointError):
  """A checkpoint that could not be written, as when the disk is full; earlier ones are whole."""


class Checkpoints:
  """The checkpoints of one run: the newest `keep`, and the one of lowest validation loss.

  Saving copies the state and returns; the writing goes on beside the next steps. A checkpoint
  counts only once it is whole: Orbax renames it into place, or marks it on object stores.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    *,
    keep: int = 2,
    on_failure: Callable[[SaveError], None] | None = None,
  ):
    """A checkpoint that cannot be written is given to `on_failure`; without one it is raised."""
    self._directory = files.absolute(directory)
    self._keep = keep
    self._on_failure = on_failure or _raise
    self._writing: int | None = None
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    if jax.process_index() == 0:
      _remove_unfinished(self._directory)
    policies = ocp.checkpoint_managers
    keep_policy = policies.AnyPreservationPolicy(
      [
        policies.LatestN(self._keep),
        policies.BestN(get_metric_fn=finished.quality, n=1, keep_checkpoints_without_metrics=False),
      ]
    )
    return ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        step_prefix=finished.PREFIX,
        best_fn=finished.quality,  # without it Orbax does not write what its policies read
        preservation_policy=keep_policy,
        async_options=ocp.AsyncOptions(post_finalization_callback=self._sum),
      ),
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType
  ) -> None:
    if error is None:
      self._on_failure = _raise  # the last checkpoint is the run
    elif self._on_failure is _raise:
      self._on_failure = lambda failed: log.warning('%s', failed)
    self._attempt(self._manager.wait_until_finished)
    self._manager.close()

  def latest(self) -> int | None:
    """The step of the newest whole checkpoint."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, *, validation_loss: float | None = None) -> None:
    """Write `state` in the background; a step that is there already is left alone.

    What fails in the background is found at the next `save` or `check`.
    """
    if step in self._manager.all_steps():
      return
    self._attempt(self._manager.wait_until_finished)
    self._writing = step
    metrics = None if validation_loss is None else {'loss': validation_loss}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state))
    self._attempt(lambda: self._manager.save(step, args=args, metrics=metrics))

  def check(self) -> None:
    """Whether the last `save` has failed, as far as that is known without waiting for it."""
    if not self._manager.is_saving_in_progress():
      self._attempt(self._manager.wait_until_finished)

  def _attempt(self, write: Callable[[], object]) -> None:
    try:
      write()
    except Exception as error:  # whatever was raised in Orbax's threads
      self._on_failure(self._failed(error))

  def _failed(self, error: Exception) -> SaveError:
    """Leaves all as if the checkpoint had not been begun."""
    # Removes what was written of it; what other threads still write, the next run removes.
    self._manager = self._open()
    there = ', '.join(map(str, self._manager.all_steps())) or 'none'
    return SaveError(
      f'the checkpoint of step {self._writing} could not be written to {self._directory} '
      f'({str(error).splitlines()[0]}). Those that were there are untouched: {there}. Make room, '
      'and the same command goes on.'
    )

  def _sum(self) -> None:
    """Orbax calls this when all is written, before the checkpoint gets the name by which it counts.

    In object stores it has its name from the beginning.
    """
    if jax.process_index() == 0:
      name = f'{finished.PREFIX}_{self._writing}'
      (place,) = (p for p in self._directory.glob(f'{name}*') if p.name.split('.')[0] == name)
      checksums.write(place)

  def restore(self, step: int, like: Any) -> Any:
    """The state of `step`, placed and typed as `like` (arrays or their abstract twins).

    Raises CheckpointError, naming the arrays, if the checkpoint holds others.
    """
    self._attempt(self._manager.wait_until_finished)
    return arrays.restore(self._directory / f'{finished.PREFIX}_{step}' / 'state', like)

  def save_base(self, params: Any) -> None:
    """Write the frozen weights that the checkpoints' adapters belong to, and wait for it."""
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(self._directory / BASE, {'params': params}, force=True)
    if jax.process_index() == 0:
      checksums.write(self._directory / BASE)

  def restore_base(self, like: Any) -> Any:
    """What `save_base` wrote, placed and held as `like`."""
    return arrays.params(_base(self._directory), like)


def _raise(error: SaveError) -> None:
  raise error


def _remove_unfinished(directory: epath.Path) -> None:
  """What a killed or failed save has left.

  Not by Orbax's manager: its thread would take away a base that is just being written, and in
  object stores every folder without Orbax's mark, as those of logs and profiles.
  """
  for place in ocp.utils.tmp_checkpoints(directory):
    path = place.get()
    if not re.match(rf'({finished.PREFIX}_\d+|{BASE})(\.|$)', path.name):
      continue
    try:
      path.rmtree()
    except OSError as error:  # a thread of the failed save still writes there
      log.warning('%s could not be removed (%s); the next run does it.', path, error)


def is_made(
  directory: epath.PathLike, description: Mapping[str, Any], origin: Mapping[str, Any]
) -> bool:
  """Whether a run that is made of other weights, not trained, is there already.

  Raises CheckpointError, naming what differs, if the directory holds another.
  """
  check_description(directory, description)
  check_description(directory, origin, MANIFEST)
  return bool(finished.steps(files.absolute(directory)))


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
  state = directory / f'{finished.PREFIX}_{step}' / 'state'
  if not (directory / BASE).exists():
    return arrays.params(state, like)
  shapes, flat = arrays.shapes(state), traverse_util.flatten_dict(like)
  thin = {}
  for name, leaf in flat.items():
    if (*name, 'down') in shapes:
      place = NamedSharding(quantization.as_float32(leaf).sharding.mesh, PartitionSpec())
      thin[name] = lora.Adapter._make(
        jax.ShapeDtypeStruct(shapes[*name, part], 'float32', sharding=place)
        for part in lora.Adapter._fields
      )
  adapters = traverse_util.flatten_dict(arrays.params(state, traverse_util.unflatten_dict(thin)))
  scale = lora.LoraConfig(**read_description(directory)[LORA]).scale
  merge = functools.partial(lora.merge, scale=scale)
  merges = {name: functools.partial(merge, adapter=pair) for name, pair in adapters.items()}
  return arrays.params(_base(directory), like, merges)


def _base(directory: epath.Path) -> epath.Path:
  if (directory / BASE / checksums.MANIFEST).exists():
    reason = checksums.damage(directory / BASE)
    if reason:
      raise CheckpointError(
        f'{directory / BASE} is damaged: {reason}. Without these weights the adapters beside them '
        'are of no use: copy it again from where it was whole.'
      )
  return directory / BASE


def locate(path: epath.PathLike, which: Which = 'last') -> tuple[epath.Path, int]:
  """Run directory and step of a checkpoint, given as MODEL_DIR or MODEL_DIR/checkpoint_N.

  `which` says the step in the first case: a number, the last, or the one of lowest validation
  loss. Of several processes all must call. Raises CheckpointError, naming what is there, if it is
  not; if it is damaged, then only where a number was given.
  """
  path = files.absolute(path)
  if named := re.fullmatch(rf'{finished.PREFIX}_(\d+)', path.name):
    path, which = path.parent, int(named[1])
  if not path.is_dir():
    raise CheckpointError(f'there is no run directory {path}: train it first, or mend the path.')
  places = finished.steps(path)
  steps = sorted(places, reverse=True)
  if not steps:
    raise CheckpointError(
      f'{path} holds no whole checkpoint ({finished.PREFIX}_N): the run has not saved one yet.'
    )
  if isinstance(which, int) and which not in steps:
    there = ', '.join(map(str, reversed(steps)))
    raise CheckpointError(f'{path} holds no checkpoint of step {which}; it holds: {there}.')
  if which == 'best':
    steps.sort(key=lambda step: finished.quality(finished.metrics(places[step])), reverse=True)
  return path, finished.first_whole(path, steps if isinstance(which, str) else [which])


def identity(directory: epath.PathLike, step: int) -> str:
  """Tells a checkpoint from any that was, or will be, written in its place."""
  return (epath.Path(directory) / f'{finished.PREFIX}_{step}' / finished.METADATA).read_text()


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
  return path.parent if re.fullmatch(rf'{finished.PREFIX}_\d+', path.name) else path


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
