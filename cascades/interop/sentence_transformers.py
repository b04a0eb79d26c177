"""What sentence-transformers makes of an encoder's states, as the files beside its weights say.

modules.json lists the steps: the encoder, pooling, and perhaps normalising.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cascades.checkpoints.store import CheckpointError

POOLINGS = {'cls_token': 'cls', 'mean_tokens': 'mean', 'cls': 'cls', 'mean': 'mean'}


def options(read: Callable[[str], Any]) -> dict[str, Any]:
  """`pooling`, `normalize` and perhaps `max_length` of our description of an encoder.

  `read` gives the content of a JSON file by name, {} if it is not there. Raises CheckpointError,
  naming it, for a step or an option that our encoders do not compute.
  """
  steps = read('modules.json')
  if not steps:  # what sentence-transformers does with any encoder
    return {'pooling': 'mean', 'normalize': False}
  kinds = [step['type'].rpartition('.')[2] for step in steps]
  if kinds not in (['Transformer', 'Pooling'], ['Transformer', 'Pooling', 'Normalize']):
    raise _unsupported('modules.json', 'type', kinds, 'Transformer, Pooling and then Normalize')
  limits, prompts = read('sentence_bert_config.json'), read('config_sentence_transformers.json')
  _refuse('sentence_bert_config.json', limits, 'do_lower_case', False)
  _refuse('config_sentence_transformers.json', prompts, 'default_prompt_name', None)
  length = limits.get('max_seq_length')
  return {
    'pooling': _pooling(f'{steps[1]["path"]}/config.json', read),
    'normalize': len(kinds) == 3,
    **({'max_length': length} if length else {}),
  }


def _pooling(file: str, read: Callable[[str], Any]) -> str:
  said, switch = read(file), 'pooling_mode_'
  modes = [name.removeprefix(switch) for name in said if name.startswith(switch) and said[name]]
  modes = modes or [said.get('pooling_mode', 'mean')]
  if len(modes) != 1 or modes[0] not in POOLINGS:
    raise _unsupported(file, 'pooling_mode', modes, 'one of mean and cls')
  return POOLINGS[modes[0]]


def _refuse(file: str, said: dict[str, Any], option: str, known: Any) -> None:
  if said.get(option, known) != known:
    raise _unsupported(file, option, said[option], repr(known))


def _unsupported(file: str, option: str, value: object, known: str) -> CheckpointError:
  return CheckpointError(
    f'{option}={value!r} in {file} is not supported; our encoders compute {known}.'
  )
