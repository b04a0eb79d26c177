"""Settings of sentence-transformers: pooling and normalization of an encoder's states.

modules.json lists the steps: the encoder, pooling, and optionally normalization.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cascades.checkpoints.store import CheckpointError

POOLINGS = {'cls_token': 'cls', 'mean_tokens': 'mean', 'cls': 'cls', 'mean': 'mean'}


def options(read: Callable[[str], Any]) -> dict[str, Any]:
  """Reads `pooling`, `normalize` and, if it is limited, `max_length` of an encoder's description.

  Args:
    read: returns the content of a JSON file by its name, {} if there is none.

  Raises:
    CheckpointError: a step or an option that the encoders here do not compute.
  """
  try:
    return _options(read)
  except (KeyError, TypeError, AttributeError, IndexError) as error:
    raise CheckpointError(
      f'modules.json, or a file that it names, is not of sentence-transformers: {error!r}.'
    ) from error


def _options(read: Callable[[str], Any]) -> dict[str, Any]:
  steps = read('modules.json')
  if not steps:  # sentence-transformers' default
    return {'pooling': 'mean', 'normalize': False}
  types = [step['type'].rpartition('.')[2] for step in steps]
  if types not in (['Transformer', 'Pooling'], ['Transformer', 'Pooling', 'Normalize']):
    raise _unsupported('modules.json', 'type', types, 'Transformer, Pooling and then Normalize')
  limits, prompts = read('sentence_bert_config.json'), read('config_sentence_transformers.json')
  _check('sentence_bert_config.json', limits, 'do_lower_case', False)
  _check('config_sentence_transformers.json', prompts, 'default_prompt_name', None)
  length = limits.get('max_seq_length')
  return {
    'pooling': _pooling(f'{steps[1]["path"]}/config.json', read),
    'normalize': len(types) == 3,
    **({'max_length': length} if length else {}),
  }


def _pooling(file: str, read: Callable[[str], Any]) -> str:
  config, prefix = read(file), 'pooling_mode_'
  modes = [name.removeprefix(prefix) for name in config if name.startswith(prefix) and config[name]]
  modes = modes or [config.get('pooling_mode', 'mean')]
  if len(modes) != 1 or modes[0] not in POOLINGS:
    raise _unsupported(file, 'pooling_mode', modes, 'one of mean and cls')
  return POOLINGS[modes[0]]


def _check(file: str, config: dict[str, Any], option: str, supported: Any) -> None:
  if config.get(option, supported) != supported:
    raise _unsupported(file, option, config[option], repr(supported))


def _unsupported(file: str, option: str, value: object, supported: str) -> CheckpointError:
  return CheckpointError(f'{option}={value!r} in {file} is not supported; supported: {supported}.')
