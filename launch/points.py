"""The points of a sweep: which there are, how each is called, and the stages of each.

A sweep is an ml_collections config that names gin bindings, and nothing else; `launch/sweeps` has
examples. Its fields are those of `empty`. A binding with dots is written in steps,
`config.grid.losses.cat_dist.w = (0.3, 0.5)`; values are written as in gin.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from launch.stages import Stage

GIN_FILE = 'gin_file'  # not a binding, but a point may differ by it
LONGEST_NAME = 120


class Point(NamedTuple):
  """What it has different from other points, by binding, and the name that says it."""

  name: str
  values: Mapping[str, Any]


def empty() -> ml_collections.ConfigDict:
  """A sweep of nothing, with every field there is."""
  program = {'gin_file': '', 'bindings': {}}  # or several files
  config = ml_collections.ConfigDict(type_safe=False)
  config.output_dir = ''  # one run directory below it for each point, named by its difference
  config.log_dir = ''  # logs, tables and what has finished: output_dir if empty; always local
  config.large = {**program, 'run_dir': ''}  # trained first; or a run that is there; or neither
  config.train, config.infer, config.evaluate = program, program, program  # '': left out
  config.grid = {}  # binding: its values; all combinations
  config.points = ()  # or a list of points, each {binding: value}; with a grid, all of both
  config.seeds = (0,)
  config.alone = ()  # points with one of these values train without the large model
  return config


def all_points(config: ml_collections.ConfigDict) -> list[Point]:
  """Raises ValueError for fields that are not known or not together, and for points alike."""
  if unknown := set(config) - set(empty()):
    raise ValueError(
      f'a sweep has no field {", ".join(sorted(unknown))}: choose from {", ".join(empty())}.'
    )
  if config.large.gin_file and config.large.run_dir:
    raise ValueError(
      f'large.gin_file is {config.large.gin_file!r} and large.run_dir {config.large.run_dir!r}: '
      'one trains a model, the other names one that is there; leave one empty.'
    )
  axes = flat(config.grid.to_dict())
  for name, values in axes.items():
    if not isinstance(values, tuple | list) or not values:
      raise ValueError(f'grid.{name} is {values!r}; it must be a list of one or more values.')
  if not config.seeds:
    raise ValueError('seeds is empty: give one or more.')
  listed = [flat(dict(point)) for point in config.points] or [{}]
  found = [
    _point({**dict(sorted([*point.items(), *zip(axes, values, strict=True)])), 'SEED': seed})
    for point in listed
    for values in itertools.product(*axes.values())
    for seed in config.seeds
  ]
  names = [point.name for point in found]
  if twice := sorted({name for name in names if names.count(name) > 1}):
    raise ValueError(f'several points are called {", ".join(twice)}: their values must differ.')
  return found


def flat(nested: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Values by dotted name."""
  found: dict[str, Any] = {}
  for name, value in nested.items():
    if isinstance(value, Mapping):
      found |= flat(value, f'{prefix}{name}.')
    else:
      found[f'{prefix}{name}'] = value
  return found


def bind(bindings: ml_collections.ConfigDict, binding: str) -> None:
  """Adds NAME=value."""
  name, _, value = binding.partition('=')
  *steps, last = name.split('.')
  for step in steps:
    if step not in bindings:
      bindings[step] = {}
    bindings = bindings[step]
  bindings[last] = value


def _point(values: Mapping[str, Any]) -> Point:
  """Named by every axis, also one of a single value: a grid that grows keeps its points."""
  name = ','.join(f'{key}={_readable(value)}' for key, value in values.items())
  if len(name) > LONGEST_NAME:
    name = f'{name[:LONGEST_NAME]}~{_digest(name)}'
  return Point(name, values)


def _readable(value: Any) -> str:
  """A value as part of a file's name: unchanged, or with a digest of what it was."""
  text = as_gin(value)
  stem = re.sub(r'^@|\(\)$', '', text)
  if text.endswith('.gin'):
    stem = text.rpartition('/')[2].removesuffix('.gin')
  safe = re.sub(r'[^A-Za-z0-9._+-]+', '-', stem).strip('-')
  return safe if safe == stem and safe else f'{safe}~{_digest(text)}'


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def as_gin(value: Any) -> str:
  """On the command line text is text; what else there is, is a literal."""
  return value if isinstance(value, str) else repr(value)


def stages_of_large(config: ml_collections.ConfigDict) -> list[Stage]:
  """Training the large model, unless it is there or not wanted, and its answers."""
  run = large_run(config)
  stages = []
  if config.large.gin_file:
    stages.append(_stage('train', 'train', config.large, {'MODEL_DIR': run}))
  if run and config.infer.gin_file:
    stages.append(_infer(config, run, f'{config.output_dir}/large/predictions'))
  return stages


def large_run(config: ml_collections.ConfigDict) -> str:
  """Where the large model is, or will be; nothing if there is none."""
  return f'{config.output_dir}/large' if config.large.gin_file else config.large.run_dir


def stages_of(config: ml_collections.ConfigDict, point: Point) -> list[Stage]:
  """Training the small model, its answers, and the cascade of both."""
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
  said: ml_collections.ConfigDict,
  bindings: Mapping[str, str],
  more: str = '',
) -> Stage:
  given = {key: as_gin(value) for key, value in flat(said.bindings.to_dict()).items()}
  listed = (said.gin_file,) if isinstance(said.gin_file, str) else tuple(said.gin_file)
  return Stage(name, program, [file for file in (*listed, more) if file], {**given, **bindings})
