"""The one door for checkpoints of other programs: what a path holds, by its files."""

from __future__ import annotations

from typing import Literal, TypeAlias

from etils import epath

from cascades.checkpoints import store
from cascades.checkpoints.store import CheckpointError
from cascades.interop import gguf, huggingface, t5x, t5x_files
from cascades.interop.tensor_tables import Source
from cascades.runtime import files

Format: TypeAlias = Literal['huggingface', 'gguf', 't5x']

GGUF = '.gguf'
_OPEN = {'huggingface': huggingface.open_folder, 'gguf': gguf.open_file, 't5x': t5x.open_checkpoint}
_KNOWN = (
  'Give a folder of Hugging Face (config.json and safetensors), a .gguf file, or a checkpoint_N of '
  'T5X.'
)


def recognize(path: epath.PathLike) -> Format:
  """Which format a path is of. Raises CheckpointError, saying what to give, if of none."""
  place = files.absolute(path)
  if place.is_dir():
    return _of_folder(place)
  if not place.exists():
    raise CheckpointError(f'there is no {place}. {_KNOWN}')
  if place.suffix == GGUF:
    return 'gguf'
  if place.suffix == '.safetensors':
    raise CheckpointError(
      f'{place} is one file of a model: give its folder, where config.json says what it is.'
    )
  if any(place.match(pattern) for pattern in huggingface.PICKLES):
    raise CheckpointError(
      f'{place} is a pickle, which runs code when it is opened, and is not read here. {_KNOWN} '
      'Given its folder of Hugging Face, this program names the command that converts it.'
    )
  raise CheckpointError(f'{place} is a file of no known format. {_KNOWN}')


def open_source(path: epath.PathLike) -> Source:
  """The model at a path of any known format."""
  return _OPEN[recognize(path)](path)


def _of_folder(folder: epath.Path) -> Format:
  if (folder / huggingface.CONFIG).exists():
    return 'huggingface'
  if (store.run_of(folder) / store.DESCRIPTION).exists():
    raise CheckpointError(
      f'{folder} is a run directory already, or a checkpoint in one: it needs no conversion, the '
      'other programs take it as CHECKPOINT_PATH, LARGE_CHECKPOINT_PATH or INITIAL_CHECKPOINT_PATH.'
    )
  if (folder / t5x_files.INDEX).exists() or (folder / t5x_files.STATE).is_dir():
    return 't5x'
  inside = sorted(found.name for found in folder.glob(f'*{GGUF}'))
  inside += sorted(found.name for found in folder.glob('checkpoint_*'))
  if inside:
    raise CheckpointError(f'{folder} is no checkpoint; give one that it holds: {inside[-1]}.')
  names = sorted(found.name for found in folder.iterdir())
  holds = f'holds {", ".join(names[:5])}{" ..." if len(names) > 5 else ""}' if names else 'is empty'
  raise CheckpointError(f'{folder} {holds}, and that is no checkpoint. {_KNOWN}')
