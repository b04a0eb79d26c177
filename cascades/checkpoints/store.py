"""Checkpoints of a run directory, through Orbax: `MODEL_DIR/checkpoint_N/state`.

`model.json` in the run directory describes the model and its vocabulary, so that inference, or
another run, needs the directory only. Directories may be remote.
Checkpoints of a run with `lora` hold adapters, and `MODEL_DIR/base` the weights that they adapt.
A damaged checkpoint is never read: instead of the newest or the best the next one is used, with a
warning.
"""

from __future__ import annotations

import dataclasses
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

from cascades.checkpoints import arrays, checksums, finished, json_files
from cascades.checkpoints.finished import CheckpointError
from cascades.models import lora, quantization
from cascades.runtime import files, origins

log = logging.getLogger(__name__)

StepSelector: TypeAlias = int | Literal['last', 'best']

DESCRIPTION = 'model.json'
MANIFEST = 'manifest.json'  # source and options of a run that was not trained
LORA = 'lora'  # of a description: the `lora.Config` of a run that trains adapters
BASE = 'base'  # folder beside its checkpoints with the weights that the adapters belong to


# Threads would wait minutes for a directory that cannot be created.
_ASYNC = ocp.AsyncOptions(create_directories_asynchronously=False)


class SaveError(CheckpointError):
  """A checkpoint that could not be written, as on a full disk; earlier ones are intact."""


class Checkpoints:
  """The checkpoints of one run: those that `finished.Preservation` keeps.

  Saving copies the state and returns, and a thread writes it during the next steps. A checkpoint
  is visible when it is complete: Orbax renames it, or marks it on object stores. Use it as a
  context manager, which waits for the last checkpoint.

  Args:
    directory: the run directory.
    keep: the number of newest checkpoints, besides the best and the last sound one.
    on_failure: called with a SaveError for a checkpoint that cannot be written; by default it is
      raised.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    *,
    keep: int = 2,
    on_failure: Callable[[SaveError], None] | None = None,
  ):
    self._directory = files.absolute(directory)
    self._preservation = finished.Preservation(keep)
    self._on_failure = on_failure or _raise
    self._writing: int | None = None
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    if jax.process_index() == 0:
      _remove_unfinished(self._directory)
    return ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        step_prefix=finished.PREFIX,
        best_fn=finished.quality,  # without it Orbax does not write what its policies read
        preservation_policy=self._preservation,
        async_options=dataclasses.replace(_ASYNC, post_finalization_callback=self._write_checksums),
      ),
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    error_type: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType,
  ) -> None:
    if error is None:
      self._on_failure = _raise  # without its last checkpoint the run is lost
    elif self._on_failure is _raise:
      self._on_failure = lambda failure: log.warning('%s', failure)
    self._attempt(self._manager.wait_until_finished)
    self._manager.close()

  def latest(self) -> int | None:
    """The step of the newest finished checkpoint; None if there is none."""
    return self._manager.latest_step()

  def save(
    self, step: int, state: Any, *, validation_loss: float | None = None, trained: bool = True
  ) -> None:
    """Writes `state` in the background, unless the step has a checkpoint already.

    Failures in the background are reported by the next `save` or `check`. The checkpoint of the
    lowest `validation_loss` is the best. `trained` says if updates were applied since the last one.
    """
    if step in self._manager.all_steps():
      return
    self._attempt(self._manager.wait_until_finished)
    self._writing = step
    self._preservation.judge(step, self._manager.latest_step(), validation_loss, trained)
    metrics = None if validation_loss is None else {'loss': validation_loss}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state))
    self._attempt(lambda: self._manager.save(step, args=args, metrics=metrics))

  def check(self) -> None:
    """Reports the failure of a `save` that has ended, without waiting for one that has not."""
    if not self._manager.is_saving_in_progress():
      self._attempt(self._manager.wait_until_finished)

  def _attempt(self, write: Callable[[], object]) -> None:
    try:
      write()
    except Exception as error:  # of any type, from Orbax's threads
      self._on_failure(self._failed(error))

  def _failed(self, error: Exception) -> SaveError:
    """Removes the incomplete checkpoint and describes the failure."""
    # The next run removes the files that other threads are still writing.
    self._manager = self._open()
    steps = ', '.join(map(str, self._manager.all_steps())) or 'none'
    return SaveError(
      f'the checkpoint of step {self._writing} could not be written to {self._directory} '
      f'({str(error).splitlines()[0]}). Earlier checkpoints are intact: {steps}. Free some disk '
      'space, or make the directory writable; rerunning the same command resumes training.'
    )

  def _write_checksums(self) -> None:
    """Called by Orbax when all files are written, before it renames the checkpoint.

    In object stores the checkpoint has its final name from the beginning.
    """
    if jax.process_index() == 0:
      name = f'{finished.PREFIX}_{self._writing}'
      (path,) = (p for p in self._directory.iterdir() if p.name.split('.')[0] == name)
      checksums.write(path)

  def restore(self, step: int, like: Any, *, adapt: arrays.Adapt | None = None) -> Any:
    """Reads the state of a step in the shapes, dtypes and shardings of `like`.

    Args:
      step: the step of a checkpoint.
      like: tree of abstract arrays.
      adapt: describes what an earlier version stored in the place of `like`, and converts it.

    Raises:
      CheckpointError: the checkpoint is damaged, or holds other arrays, which are named.
    """
    self._attempt(self._manager.wait_until_finished)
    return arrays.restore(self._directory / f'{finished.PREFIX}_{step}' / 'state', like, adapt)

  def save_base(self, params: Any) -> None:
    """Writes the frozen weights that the checkpoints' adapters belong to, and waits for it."""
    with ocp.StandardCheckpointer(async_options=_ASYNC) as checkpointer:
      checkpointer.save(self._directory / BASE, {'params': params}, force=True)
    if jax.process_index() == 0:
      checksums.write(self._directory / BASE)

  def restore_base(self, like: Any) -> Any:
    """Reads the weights that `save_base` wrote, in the shardings and dtypes of `like`."""
    return arrays.params(_base(self._directory), like)


def _raise(error: SaveError) -> None:
  raise error


def _remove_unfinished(directory: epath.Path) -> None:
  """Removes incomplete checkpoints and files of a killed or failed save.

  Orbax's manager would also remove a base that is being written and, in object stores, folders
  without its mark, such as logs.
  """
  files.remove_leftovers(directory)
  for temporary in ocp.utils.tmp_checkpoints(directory):
    path = temporary.get()
    if not re.match(rf'({finished.PREFIX}_\d+|{BASE})(\.|$)', path.name):
      continue
    try:
      path.rmtree()
    except OSError as error:  # a thread of the failed save is still writing
      log.warning('%s could not be removed (%s); the next run will do it.', path, error)


def is_made(
  directory: epath.PathLike, description: Mapping[str, Any], origin: Mapping[str, Any]
) -> bool:
  """Checks whether `make` has written this run.

  Raises:
    CheckpointError: the directory holds another run; the message names the differences.
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
  """Writes a run directory of weights that were not trained, with checkpoint 0.

  Args:
    directory: the run directory.
    params: the weights.
    description: of the model and vocabulary, written to model.json.
    origin: the source and options of the conversion, written to manifest.json.
    config: the operative configuration of the program, written to config.gin.
  """
  directory = files.absolute(directory)
  with Checkpoints(directory) as checkpoints:
    if jax.process_index() == 0:
      write_description(directory, description)
      write_description(directory, origin, MANIFEST)
      files.write(directory / 'config.gin', config)
    checkpoints.save(0, {'params': params})


def restore_params(path: epath.PathLike, like: Any, *, which: StepSelector = 'last') -> Any:
  """Reads the parameters of a checkpoint, with adapters merged into their base.

  Parameters that are merged, or change their quantization, are read one at a time, so that only one
  is in memory twice.

  Args:
    path: a run directory (MODEL_DIR) or a checkpoint (MODEL_DIR/checkpoint_N).
    like: tree of abstract arrays with the shapes, dtypes and shardings to return.
    which: the checkpoint of a run directory: a step, the last, or the best.

  Raises:
    CheckpointError: there is no such checkpoint, it is damaged, or of another model.
  """
  directory, step = locate(path, which)
  state = directory / f'{finished.PREFIX}_{step}' / 'state'
  if not (directory / BASE).exists():
    return arrays.params(state, like)
  shapes, flat = arrays.shapes(state), traverse_util.flatten_dict(like)
  abstract = {}
  for name, leaf in flat.items():
    if (*name, 'down') in shapes:
      replicated = NamedSharding(quantization.as_float32(leaf).sharding.mesh, PartitionSpec())
      abstract[name] = lora.Adapter._make(
        jax.ShapeDtypeStruct(shapes[*name, field], 'float32', sharding=replicated)
        for field in lora.Adapter._fields
      )
  adapters = traverse_util.flatten_dict(
    arrays.params(state, traverse_util.unflatten_dict(abstract))
  )
  scale = lora.LoraConfig(**read_description(directory)[LORA]).scale
  merge = functools.partial(lora.merge, scale=scale)
  merges = {name: functools.partial(merge, adapter=pair) for name, pair in adapters.items()}
  return arrays.params(_base(directory), like, merges)


def _base(directory: epath.Path) -> epath.Path:
  if (directory / BASE / checksums.MANIFEST).exists():
    reason = checksums.damage(directory / BASE)
    if reason:
      raise CheckpointError(
        f'{directory / BASE} is damaged: {reason}. The adapters need these weights: copy them '
        'again from an intact copy.'
      )
  return directory / BASE


def locate(path: epath.PathLike, which: StepSelector = 'last') -> tuple[epath.Path, int]:
  """Finds a checkpoint. A collective operation: all processes must call it.

  Args:
    path: a run directory (MODEL_DIR) or a checkpoint (MODEL_DIR/checkpoint_N).
    which: the checkpoint of a run directory: a step, the last, or the best, that of the lowest
      validation loss. Damaged ones are skipped unless a step is given.

  Returns:
    The run directory and the step.

  Raises:
    CheckpointError: there is no such checkpoint, or it is damaged.
  """
  path = files.absolute(path)
  if named := re.fullmatch(rf'{finished.PREFIX}_(\d+)', path.name):
    path, which = path.parent, int(named[1])
  if not path.is_dir():
    raise CheckpointError(f'there is no run directory {path}: train it first, or correct the path.')
  paths = finished.steps(path)
  steps = sorted(paths, reverse=True)
  if not steps:
    raise CheckpointError(
      f'{path} holds no finished checkpoint ({finished.PREFIX}_N): the run has not saved one yet.'
    )
  if isinstance(which, int) and which not in steps:
    available = ', '.join(map(str, reversed(steps)))
    raise CheckpointError(f'{path} holds no checkpoint of step {which}; it holds: {available}.')
  if which == 'best':
    steps = finished.best_first(path, paths)
  return path, finished.first_intact(path, steps if isinstance(which, str) else [which])


def identity(directory: epath.PathLike, step: int) -> str:
  """A text that differs between checkpoints that are written to the same path."""
  return (epath.Path(directory) / f'{finished.PREFIX}_{step}' / finished.METADATA).read_text()


def check_description(
  directory: epath.PathLike, description: Mapping[str, Any], file: str = DESCRIPTION
) -> None:
  """Raises CheckpointError, naming the differences, if the directory has another description."""
  path = epath.Path(directory) / file
  if not path.exists():
    return
  stored, expected = _flat(json_files.read_object(path)), _flat(json.loads(_text(description)))
  if different := origins.differences(stored, expected, dict.fromkeys((*expected, *stored))):
    raise CheckpointError(
      f'{directory} belongs to another run: {"; ".join(different)}. Choose another MODEL_DIR, or '
      'remove that one.'
    )


def write_description(
  directory: epath.PathLike, description: Mapping[str, Any], file: str = DESCRIPTION
) -> None:
  """Writes the description of a run. Raises CheckpointError if the directory has another."""
  check_description(directory, description, file)
  path = epath.Path(directory) / file
  if not path.exists():
    files.write(path, _text(description))


def _text(description: Mapping[str, Any]) -> str:
  return json.dumps(description, indent=2, allow_nan=False) + '\n'


def _flat(description: Mapping[str, Any]) -> dict[str, Any]:
  """Removes a level of nesting, so that messages name single fields."""
  flat: dict[str, Any] = {}
  for key, value in description.items():
    flat |= {f'{key} {k}': v for k, v in value.items()} if isinstance(value, dict) else {key: value}
  return flat


def run_of(path: epath.PathLike) -> epath.Path:
  """The run directory of a checkpoint, or the path itself if it is one."""
  path = epath.Path(path)
  return path.parent if re.fullmatch(rf'{finished.PREFIX}_\d+', path.name) else path


def read_description(path: epath.PathLike) -> dict[str, Any]:
  """Reads model.json.

  Args:
    path: a run directory, or one of its checkpoints.

  Returns:
    The description of the model (`configs.from_description` reads it), and of its vocabulary.

  Raises:
    CheckpointError: this is no run directory, or the file is damaged.
  """
  directory = run_of(path)
  file = directory / DESCRIPTION
  if not file.exists():
    raise CheckpointError(
      f'{directory} is not a run directory: {DESCRIPTION} is missing. Give the MODEL_DIR of a '
      'training run, or one of its checkpoints.'
    )
  return json_files.read_object(file)
