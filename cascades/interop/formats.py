"""Formats of pretrained models, recognized by the files at a path."""

from __future__ import annotations

import os
import re
from typing import Literal, TypeAlias

from etils import epath

from cascades.checkpoints import store
from cascades.checkpoints.store import CheckpointError
from cascades.interop import huggingface, t5x_files
from cascades.runtime import files

Format: TypeAlias = Literal['huggingface', 'gguf', 't5x']

GGUF = '.gguf'
_SUPPORTED = (
  'Give a folder of Hugging Face (config.json and safetensors), a .gguf file, or a checkpoint_N of '
  'T5X.'
)


def recognize(path: epath.PathLike) -> Format:
  """The format of the model at a path.

  Raises:
    CheckpointError: there is no model of these formats; the message says what to give.
  """
  given, path = os.fspath(path), files.absolute(path)
  if path.is_dir():
    return _recognize_folder(path)
  if not path.exists():
    if re.fullmatch(r'[\w-][\w.-]*/[\w.-]+', given) and not path.parent.exists():
      folder = f'downloads/{path.name}'
      raise CheckpointError(
        f'there is no folder {given}. If this is the name of a model on the Hugging Face hub: '
        'models are not downloaded here; with the package huggingface_hub,\n'
        f'  hf download {given} --local-dir {folder}\n'
        f'makes a folder, which is then the SOURCE: --gin.SOURCE={folder}'
      )
    raise CheckpointError(f'there is no {path}. {_SUPPORTED}')
  if path.suffix == GGUF:
    return 'gguf'
  if path.suffix == '.safetensors':
    raise CheckpointError(
      f'{path} is one file of a model: give its folder, where config.json describes the model.'
    )
  if any(path.match(pattern) for pattern in huggingface.PICKLES):
    raise CheckpointError(
      f'{path} is a pickle, which runs code when it is opened, and is not read here. {_SUPPORTED} '
      'Given its folder of Hugging Face, this program names the command that converts it.'
    )
  raise CheckpointError(f'{path} is a file of an unsupported format. {_SUPPORTED}')


def _recognize_folder(folder: epath.Path) -> Format:
  if (folder / huggingface.CONFIG).exists():
    return 'huggingface'
  if (store.run_of(folder) / store.DESCRIPTION).exists():
    raise CheckpointError(
      f'{folder} is a run directory already, or a checkpoint in one: it needs no conversion, the '
      'other programs read it as CHECKPOINT_PATH, LARGE_CHECKPOINT_PATH or INITIAL_CHECKPOINT_PATH.'
    )
  if (folder / t5x_files.INDEX).exists() or (folder / t5x_files.STATE).is_dir():
    return 't5x'
  models = sorted(path.name for path in folder.glob(f'*{GGUF}'))
  models += sorted(path.name for path in folder.glob('checkpoint_*'))
  if models:
    raise CheckpointError(f'{folder} is no checkpoint; give one that it holds: {models[-1]}.')
  names = sorted(path.name for path in folder.iterdir())
  holds = f'holds {", ".join(names[:5])}{" ..." if len(names) > 5 else ""}' if names else 'is empty'
  raise CheckpointError(f'{folder} {holds}, and that is no checkpoint. {_SUPPORTED}')
