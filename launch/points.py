"""Points of a sweep, their names, and the stages of each.

A sweep is an ml_collections config that lists gin bindings, such as those in `launch/sweeps`. Its
fields are those of `empty`. Bindings with dots are nested: `config.grid.losses.cat_dist.w = (0.3,
0.5)`. Values are written as in gin.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from launch.stages import Stage

GIN_FILE = 'gin_file'  # not a binding, but points may differ in it
LONGEST_NAME = 120


class Point(NamedTuple):
  """Values that distinguish a point, by binding, and a name that lists them."""

  name: str
  values: Mapping[str, Any]


def empty() -> ml_collections.ConfigDict:
  """Sweep without points, with every field."""
  program = {'gin_file': '', 'bindings': {}}  # or several files
  config = ml_collections.ConfigDict(type_safe=False)
  config.output_dir = ''  # contains one run directory per point, named after its values
  config.log_dir = ''  # logs, tables, markers of finished stages; output_dir if empty; always local
  config.large = {**program, 'run_dir': ''}  # trained first, or an existing run, or neither
  config.train, config.infer, config.evaluate = program, program, program  # '': left out
  config.grid = {}  # binding: its values; all combinations
  config.points = ()  # list of {binding: value}; with a grid, all combinations
  config.seeds = (0,)
  config.alone = ()  # points with one of these values train without the large model
  return config


def all_points(config: ml_collections.ConfigDict) -> list[Point]:
  """Points of a sweep; raises ValueError for unknown or contradictory fields and equal points."""
  if unknown := set(config) - set(empty()):
    raise ValueError(
      f'a sweep has no field {", ".join(sorted(unknown))}: choose from {", ".join(empty())}.'
    )
  if config.large.gin_file and config.large.run_dir:
    raise ValueError(
      f'large.gin_file is {config.large.gin_file!r} and large.run_dir {config.large.run_dir!r}: '
      'the first trains a model, the second names an existing run; leave one empty.'
    )
  axes = flat(config.grid.to_dict())
  for name, values in axes.items():
    if not isinstance(values, tuple | list) or not values:
      raise ValueError(f'grid.{name} is {values!r}; it must be a list of one or more values.')
  if not config.seeds:
    raise ValueError('seeds is empty: give one or more.')
  listed = [flat(dict(point)) for point in config.points] or [{}]
  points = [
    _point({**dict(sorted([*point.items(), *zip(axes, values, strict=True)])), 'SEED': seed})
    for point in listed
    for values in itertools.product(*axes.values())
    for seed in config.seeds
  ]
  names = [point.name for point in points]
  if twice := sorted({name for name in names if names.count(name) > 1}):
    raise ValueError(f'several points are called {", ".join(twice)}: their values must differ.')
  return points


def flat(nested: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Flatten nested values to values by dotted name."""
  flattened: dict[str, Any] = {}
  for name, value in nested.items():
    if isinstance(value, Mapping):
      flattened |= flat(value, f'{prefix}{name}.')
    else:
      flattened[f'{prefix}{name}'] = value
  return flattened


def bind(bindings: ml_collections.ConfigDict, binding: str) -> None:
  """Add NAME=value to nested bindings."""
  name, _, value = binding.partition('=')
  *steps, last = name.split('.')
  for step in steps:
    if step not in bindings:
      bindings[step] = {}
    bindings = bindings[step]
  bindings[last] = value


def _point(values: Mapping[str, Any]) -> Point:
  """Point named by every axis, even of a single value, so that a growing grid keeps its names."""
  name = ','.join(f'{key}={_readable(value)}' for key, value in values.items())
  if len(name) > LONGEST_NAME:
    name = f'{name[:LONGEST_NAME]}~{_digest(name)}'
  return Point(name, values)


def _readable(value: Any) -> str:
  """Value as part of a file name: unchanged, or shortened and followed by its digest."""
  text = as_gin(value)
  stem = re.sub(r'^@|\(\)$', '', text)
  if text.endswith('.gin'):
    stem = text.rpartition('/')[2].removesuffix('.gin')
  safe = re.sub(r'[^A-Za-z0-9._+-]+', '-', stem).strip('-')
  return safe if safe == stem and safe else f'{safe}~{_digest(text)}'


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def as_gin(value: Any) -> str:
  """Value as on the command line: text unchanged, anything else as a literal."""
  return value if isinstance(value, str) else repr(value)


def stages_of_large(config: ml_collections.ConfigDict) -> list[Stage]:
  """Stages of the large model: training, unless it exists or is not needed, and inference."""
  run = large_run(config)
  stages = []
  if config.large.gin_file:
    stages.append(_stage('train', 'train', config.large, {'MODEL_DIR': run}))
  if run and config.infer.gin_file:
    stages.append(_infer(config, run, f'{config.output_dir}/large/predictions'))
  return stages


def large_run(config: ml_collections.ConfigDict) -> str:
  """Run directory of the large model; empty if there is none."""
  return f'{config.output_dir}/large' if config.large.gin_file else config.large.run_dir


def stages_of(config: ml_collections.ConfigDict, point: Point) -> list[Stage]:
  """Stages of a point: training the small model, inference, and evaluation of the cascade."""
  run, large = f'{config.output_dir}/{point.name}', large_run(config)
  values = {name: as_gin(value) for name, value in point.values.items()}
  more = values.pop(GIN_FILE, '')
  beside = large and not any(value in config.alone for value in point.values.values())
  bindings = {**values, 'MODEL_DIR': run, **({'LARGE_CHECKPOINT_PATH': large} if beside else {})}
  stages = []
  if config.train.gin_file or more:
    stages.append(_stage('train', 'train', config.train, bindings, more))
  if config.infer.gin_file:
    stages.append(_infer(config, run, f'{run}/predictions'))
  if config.evaluate.gin_file and large:
    bindings = {
      'SMALL': repr({point.name: f'{run}/predictions'}),
      'LARGE': f'{config.output_dir}/large/predictions',
      'EVAL_OUTPUT_DIR': f'{run}/evaluation',
    }
    stages.append(_stage('evaluate', 'evaluate', config.evaluate, bindings))
  return stages


def _infer(config: ml_collections.ConfigDict, run: str, output: str) -> Stage:
  bindings = {'CHECKPOINT_PATH': run, 'INFER_OUTPUT_DIR': output}
  return _stage('infer', 'infer', config.infer, bindings)


def _stage(
  name: str,
  program: str,
  settings: ml_collections.ConfigDict,
  bindings: Mapping[str, str],
  more: str = '',
) -> Stage:
  given = {key: as_gin(value) for key, value in flat(settings.bindings.to_dict()).items()}
  listed = (settings.gin_file,) if isinstance(settings.gin_file, str) else tuple(settings.gin_file)
  return Stage(name, program, [file for file in (*listed, more) if file], {**given, **bindings})
