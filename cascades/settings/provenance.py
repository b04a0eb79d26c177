"""Provenance of an artifact: how it was made, as text beside it."""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata

import gin

from cascades import __version__
from cascades.runtime import environment

_VERSIONS = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'sacrebleu')


def provenance() -> dict[str, str]:
  """Provenance of an artifact: operative configuration, command, commit and versions."""
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  versions = '  '.join(f'{name} {metadata.version(name)}' for name in _VERSIONS)
  return {
    'config': gin.operative_config_str(),
    'command': ' '.join(['python', '-m', spec.name if spec else sys.argv[0], *sys.argv[1:]]),
    'commit': environment.commit(),
    'versions': f'python {sys.version.split()[0]}  lm-cascades {__version__}  {versions}',
  }


def of_training() -> dict[str, str]:
  """`provenance`, and the arguments of functions that are passed on uncalled, as @losses.dist."""
  names = sorted(set(re.findall(r'@([\w.]+)(?![\w.]*[(/])', gin.config_str())))
  bound = {
    f'{name}.{key}': value for name in names for key, value in gin.get_bindings(name).items()
  }
  text = json.dumps(bound, default=lambda value: type(value).__name__)
  return provenance() | {'bindings': text}
