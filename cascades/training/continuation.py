"""Settings that decide about the numbers of a run, compared with those that it is continued with.

`settings.json` in the run directory lists them for each configuration, with its first step:

    [{"first_step": 1, "settings": {"BATCH_SIZE": 16, ...}, "command": ..., "versions": ...}]

`config.gin` is the current configuration; `config-1-60.gin` was that of steps 1 to 60. A setting
that a run of an older version has not recorded is not compared.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from etils import epath

from cascades.checkpoints import finished, json_files, store
from cascades.data import scores
from cascades.data.answer_sources import AnswerSources
from cascades.data.corpus import Corpus, Data
from cascades.predictions import shards
from cascades.runtime import files
from cascades.training import described, teacher_cache
from cascades.training.setup import LargeModel, SmallModel, Step

log = logging.getLogger(__name__)

SETTINGS = 'settings.json'
CONFIG = 'config.gin'
# Steps whose learning rates are compared.
PROBED_STEPS = (0, *(1 << power for power in range(21)))
_ORDER = (
  'TASK', 'TASK_FEATURE_LENGTHS', 'BATCH_SIZE', 'PACK_LENGTH', 'SELECTED', 'SELECTED_ROWS',
  'SELECTED_STEPS', 'SEED',
)  # fmt: skip
_ORIGINS = (
  '_PATH',
  '_CACHE',
  '_ANSWERS',
  'SELECTED',
)  # endings of the names of what other programs wrote
_SHOWN = 60  # characters; of longer values a digest is shown


def describe(
  small: SmallModel,
  large: LargeModel,
  data: Data,
  step: Step,
  *,
  corpus: Corpus,
  seed: int,
  bindings: str = '',
) -> dict[str, Any]:
  """Settings as JSON, by the names of the command line; model.json describes the model itself.

  Microbatches, block lengths, devices and the number of processes change no number but by rounding.

  Args:
    small: The model that is trained.
    large: The frozen large model, if there is one.
    data: The shape of batches.
    step: Loss, optimizer and learning rate.
    corpus: The rows.
    seed: Seed of initial parameters, dropout and the order of rows.
    bindings: Arguments bound to functions in gin, from `settings.provenance.of_training`.
  """
  bound = json.loads(bindings or '{}')
  plain = functools.partial(described.plain, bound=bound)
  initial, teacher = small.initial_checkpoint_path, large.checkpoint_path
  return {
    'TASK': {
      task.name: {
        name: text
        for name, text in corpus.identity(task, 'train').items()
        if name in ('definition', 'source')
      }
      | {'rate': task.rate}
      for task in corpus.tasks
    },
    'TASK_FEATURE_LENGTHS': plain(data.lengths),
    'BATCH_SIZE': data.batch_size,
    'PACK_LENGTH': data.pack_length,
    **_selected(data.selection, corpus),
    'SEED': seed,
    'LOSS': plain(step.loss),
    'LOSS_NORMALIZING_FACTOR': plain(step.normalizer),
    'TOKEN_WEIGHTS': plain(step.token_weights),
    'OPTIMIZER': plain(step.optimizer),
    'LEARNING_RATE': _learning_rates(step.learning_rate),
    'READOUT_GRADIENT_DTYPE': step.readout_gradient_dtype,
    'ACCEPT': plain(step.accept),
    'INITIAL_CHECKPOINT_PATH': initial and _origin(initial, _checkpoint),
    'LARGE_CHECKPOINT_PATH': teacher and _origin(teacher, _checkpoint),
    'LARGE_DTYPE': large.dtype if teacher else None,
    'LARGE_STEPS': large.steps,
    'TEACHER_CACHE': _origins(large.caches, functools.partial(_answers, corpus=corpus)),
    'FIXED_FRACTION': data.sources.fixed_fraction,
    **(_model_answers(data.sources, corpus, plain) if data.sources.fixed_fraction < 1 else {}),
  }


def _selected(chosen: scores.Selection | None, corpus: Corpus) -> dict[str, Any]:
  """Settings of the rows that are read in place of all."""
  if chosen is None:
    return {'SELECTED': None}
  return {
    'SELECTED': _origin(chosen.directory, functools.partial(_scores, corpus=corpus)),
    'SELECTED_ROWS': chosen.rows,
    'SELECTED_STEPS': chosen.steps,
  }


def _model_answers(
  sources: AnswerSources, corpus: Corpus, plain: Callable[[Any], Any]
) -> dict[str, Any]:
  """Settings of answers that are not the task's own."""
  table = sources.large_answers
  return {
    'ON_POLICY_FRACTION': sources.on_policy_fraction,
    'LARGE_ANSWERS': table and _origin(table, functools.partial(_table, corpus=corpus)),
    'SAMPLE_EVERY': sources.sample_every,
    'SAMPLE_TOKENS': sources.sample_tokens,
    'SAMPLER': plain(sources.sampler),
  }


def check(
  directory: epath.Path,
  start: int,
  settings: Mapping[str, Any],
  react: Callable[[Exception], None],
) -> None:
  """Compare with the settings that a run directory's step `start` was trained with.

  Args:
    directory: The run directory.
    start: Its last step; at 0 there is nothing to compare with.
    settings: From `describe`.
    react: `stopping.stop` or `stopping.go_on`; called with a ValueError that lists differences.
  """
  before = _until(start, _read(directory))
  if not start:
    return
  if not before:
    log.warning(
      '%s has no %s: it cannot be checked that this command has the settings of the run.',
      directory, SETTINGS,
    )  # fmt: skip
    return
  different = dict(_differences(before[-1]['settings'], settings))
  if different:
    react(ValueError(_refusal(directory, start, different)))


def record(
  directory: epath.Path, start: int, settings: Mapping[str, Any], provenance: Mapping[str, str]
) -> None:
  """Write the configuration of the steps after `start`; that of earlier steps is kept beside it."""
  entries, config = _read(directory), provenance.get('config', '')
  path = directory / CONFIG
  earlier = path.read_text() if path.exists() else None
  first = entries[-1]['first_step'] if entries else 1
  if earlier is not None and earlier != config and first <= start:
    files.write(directory / f'config-{first}-{start}.gin', earlier)
  files.write(path, config)
  entries = _until(start, entries)
  if not entries or entries[-1]['settings'] != settings or earlier != config:
    origin = {name: provenance.get(name, '') for name in ('command', 'commit', 'versions')}
    entry = {'first_step': start + 1, 'settings': settings, **origin}
    files.write(directory / SETTINGS, json.dumps([*entries, entry], indent=1) + '\n')


def _read(directory: epath.Path) -> list[dict[str, Any]]:
  """Entries of all configurations, in the order in which they were used."""
  path = directory / SETTINGS
  if not path.exists():
    return []
  try:
    entries = json.loads(path.read_text())
    if not all({'first_step', 'settings'} <= set(entry) for entry in [*entries]):
      raise ValueError('an entry lacks its first step or its settings')
    return [*entries]
  except (ValueError, TypeError) as error:
    raise ValueError(
      f'{path} is damaged ({error}): copy it again from an intact copy, or remove it to continue '
      'the run without comparing its settings.'
    ) from error


def _until(start: int, entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
  """Those that a step up to `start` was trained with; later steps have not been saved."""
  return [entry for entry in entries if entry['first_step'] <= start]


# -- differences -----------------------------------------------------------------------------------


def _refusal(directory: epath.Path, start: int, different: Mapping[str, str]) -> str:
  order = [name for name in _ORDER if any(key.split()[0] == name for key in different)]
  rows = (
    f' The rows of a step depend on {" and ".join(order)}: some would repeat, and others be left '
    'out before the next epoch.'
  )
  return (
    f'{directory} was trained to step {start} with other settings: '
    f'{"; ".join(f"{name} {text}" for name, text in different.items())}.{rows if order else ""} '
    'Restore the settings, choose another MODEL_DIR, or continue with the new ones by '
    'ON_CHANGED_SETTINGS=@stopping.go_on.'
  )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """Names of settings, with the values that differ."""
  before, now = json.loads(json.dumps([before, now]))  # both without tuples
  for name in [name for name in now if name in before]:
    old, new = before[name], now[name]
    if name == 'LEARNING_RATE':
      yield from _different_rates(old, new)
    elif name.endswith(_ORIGINS):
      if not _same_origin(name, old, new):
        yield name, _versus(old, new)
    else:
      yield from _different_fields(name, old, new)


def _different_fields(name: str, old: Any, new: Any) -> Iterator[tuple[str, str]]:
  """Descends into dictionaries, and into the arguments of one function."""
  if json.dumps(old) == json.dumps(new):  # in the same order
    return
  if isinstance(new, dict) and old == new.get('type', ''):
    return  # all that an earlier version recorded
  dicts = isinstance(old, dict) and isinstance(new, dict)
  if not dicts or old.get('function') != new.get('function'):
    yield name, _versus(old, new)
  else:
    for key in dict.fromkeys((*old, *new)):
      if 'function' in old and not (key in old and key in new):
        continue  # an argument that another version does not have
      yield from _different_fields(f'{name} {key}', old.get(key), new.get(key))
    if name == 'TASK' and list(old) != list(new) and sorted(old) == sorted(new):
      yield name, f'has the order {", ".join(old)} there and {", ".join(new)} here'


def _different_rates(
  old: Mapping[str, float], new: Mapping[str, float]
) -> Iterator[tuple[str, str]]:
  for step in new:
    if step in old and not math.isclose(old[step], new[step], rel_tol=1e-5):
      first, *last = (int(number) + 1 for number in step.split('-'))
      when = f'on average in steps {first} to {last[0]}' if last else f'in step {first}'
      text = f'is {old[step]:.6g} there and {new[step]:.6g} here {when}'
      yield 'LEARNING_RATE', f'{text} (by SCHEDULE, WARMUP_STEPS or TRAIN_STEPS too)'
      return


def _same_origin(name: str, old: Any, new: Any) -> bool:
  if not (old and new):
    return old == new
  # A run that has begun does not read its initial checkpoint again, which may have gone.
  if name == 'INITIAL_CHECKPOINT_PATH' and (old['path'] == new['path'] or not new['identity']):
    return True
  by = 'identity' if old['identity'] and new['identity'] else 'path'
  return old[by] == new[by]


def _versus(old: Any, new: Any) -> str:
  return f'is {_shown(old)} there and {_shown(new)} here'


def _shown(value: Any) -> str:
  if isinstance(value, dict) and 'path' in value:
    return f'{value["path"]} ({value["identity"]})' if value['identity'] else value['path']
  if isinstance(value, dict) and 'function' in value:
    return value['function']
  text = repr(value)
  return text if len(text) <= _SHOWN else described.digest(text)


# -- descriptions ----------------------------------------------------------------------------------


def _learning_rates(schedule: optax.Schedule) -> dict[str, float]:
  """Learning rates of the updates after so many others, and their means in between."""
  last = PROBED_STEPS[-1]
  rates = jax.jit(jax.vmap(lambda step: jax.numpy.asarray(schedule(step), 'float32')))
  every = np.asarray(rates(np.arange(last + 1, dtype='int32')), 'float64')
  means = {
    f'{first}-{end}': float(every[first : end + 1].mean())
    for first, end in itertools.pairwise(PROBED_STEPS)
    if end - first > 1
  }
  return {str(step): float(schedule(step)) for step in PROBED_STEPS} | means


def _origin(path: str, identity: Callable[[str], str]) -> dict[str, Any]:
  """Path and identity of something that other programs wrote; it may have been removed since."""
  try:
    content = identity(path)
  except (OSError, ValueError):
    content = None
  return {'path': str(files.absolute(path)), 'identity': content}


def _origins(paths: Sequence[str], identity: Callable[[str], str]) -> dict[str, Any] | None:
  """Paths and identities of several as those of one; None for none."""
  origins = [_origin(path, identity) for path in paths]
  if len(origins) < 2:
    return origins[0] if origins else None
  identities = [origin['identity'] for origin in origins]
  return {
    'path': ', '.join(origin['path'] for origin in origins),
    'identity': ', '.join(identities) if all(identities) else None,
  }


def _scores(path: str, corpus: Corpus) -> str:
  manifests = [
    scores.check(scores.location(path, task.name), corpus.identity(task, 'train'), '')
    for task in corpus.tasks
  ]
  return described.digest(json.dumps([manifest['origin'] for manifest in manifests]))


def _checkpoint(path: str) -> str:
  directory = files.absolute(path)
  run = store.run_of(directory)
  step = max(finished.steps(run)) if run == directory else int(directory.name.rpartition('_')[2])
  return f'step {step}, {described.digest(store.identity(run, step))}'


def _answers(path: str, corpus: Corpus) -> str:
  manifests = [
    teacher_cache.read_manifest(teacher_cache.location(path, task.name, 'train'))
    for task in corpus.tasks
  ]
  names = ('checkpoint_identity', 'vocab_size', 'top_k', 'dtype', 'weights', 'precision')
  values = [[manifest.get(name) for name in names] for manifest in manifests]
  if any(samples := [manifest.get('tail_samples') for manifest in manifests]):
    values.append(samples)  # caches without samples keep the digest of before there were any
  return described.digest(json.dumps(values))


def _table(path: str, corpus: Corpus) -> str:
  names = [shards.manifest_name(task.name, 'predict') for task in corpus.tasks]
  manifests = [json_files.read_object(files.absolute(path) / 'train' / name) for name in names]
  return described.digest(json.dumps([manifest.get('fingerprint') for manifest in manifests]))
