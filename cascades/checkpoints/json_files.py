"""JSON files of checkpoints, read with a limit on their size."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from cascades.checkpoints.finished import CheckpointError

# Descriptions have kilobytes, and the longest list of tensors a few megabytes.
MAX_BYTES = 1 << 26


def read(file: epath.Path) -> Any:
  """The content of a JSON file.

  Raises:
    CheckpointError: the file is damaged, or larger than MAX_BYTES.
  """
  if (size := file.stat().length) > MAX_BYTES:
    raise CheckpointError(
      f'{file} has {size:,} bytes, more than cascades.checkpoints.json_files.MAX_BYTES='
      f'{MAX_BYTES:,}: it is no description of a model.'
    )
  try:
    return json.loads(file.read_text())
  except (ValueError, RecursionError) as error:
    raise CheckpointError(
      f'{file} is damaged ({error}): copy it again from an intact copy.'
    ) from error


def read_object(file: epath.Path) -> dict[str, Any]:
  """The object in a JSON file. Raises CheckpointError for a list, a number or a text too."""
  content = read(file)
  if not isinstance(content, dict):
    raise CheckpointError(
      f'{file} holds {type(content).__name__} and not an object with fields: copy it again from an '
      'intact copy.'
    )
  return content
