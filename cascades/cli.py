"""Command line of the programs: flags, gin files and bindings. The only file that imports gin.

    python -m cascades.train --gin_file=recipes/demo_large.gin --gin.TRAIN_STEPS=500

Files set macros and bindings; `--gin.NAME=value` overrides them. Both may name functions of this
package (`--gin.LOSS=@losses.cat_dist`). On the command line a value that is not a Python literal is
text (`--gin.MODEL_DIR=runs/mine`). Relative gin files are searched for in the working directory, in
gin_configs/ and in `--gin_search_paths`.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import importlib
import inspect
import json
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from typing import Any

import gin
from absl import app, flags
from absl import logging as absl_logging

from cascades import __version__
from cascades.runtime import environment, stopping

_FILES = flags.DEFINE_multi_string('gin_file', [], 'A gin file; repeat for several.')
_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings', [], 'A binding, "NAME=value"; --gin.NAME=value is short for it.'
)
_SEARCH_PATHS = flags.DEFINE_list(
  'gin_search_paths', [], 'Folders to search for gin files, besides the usual ones.'
)
_TRACEBACK = flags.DEFINE_boolean('traceback', False, 'Print the traceback of an error.')

# Flags that `_define_flags` defines only in the programs that honor them.
_SOME_PROGRAMS = {
  'profile_steps',
  'topology',
  'large_model',
  'multihost',
  'coordinator_address',
  'process_count',
  'process_index',
  'heartbeat_timeout',
}

# Modules that bindings on the command line may name without an import.
_USUAL = (
  'cascades.losses',
  'cascades.data.corpus',
  'cascades.models.lora',
  'cascades.metrics',
  'cascades.training.optimizers',
  'cascades.training.setup',
  'cascades.runtime.partitioning',
  'cascades.runtime.stopping',
  'cascades.training.train_step',
  'cascades.models.decoder',
  'cascades.models.t5',
  'cascades.tasks.c4',
  'cascades.tasks.catalog',
  'cascades.tasks.chats',
  'cascades.tasks.cmudict',
  'cascades.tasks.flan.suite',
  'cascades.tasks.local',
  'cascades.tasks.sources',
  'cascades.tasks.streams',
  'cascades.tasks.superglue',
  'cascades.tokenizers.vocabularies',
  'cascades.tasks.wmt22',
)
_MODULES = {
  'cascades.evaluate': (  # starts without JAX
    'cascades.deferral', 'cascades.metrics', 'cascades.evaluation.comparison',
    'cascades.evaluation.tables', 'cascades.reporting.report',
  ),
  'cascades.prune': (*_USUAL, 'cascades.models.pruning'),
  'cascades.plan': ('cascades.train', *_USUAL),
  'cascades.infer': (
    'cascades.inference.answers', 'cascades.inference.trained_model', *_USUAL,
  ),
  'cascades.cache_teacher': ('cascades.inference.trained_model', *_USUAL),
}  # fmt: skip
# Files that are read after those of the command, and the macros that stay required after them.
_LAST_FILES = {'cascades.plan': ['runs/plan.gin']}
_REQUIRED = {
  'cascades.plan': {'BATCH_SIZE', 'TASK_FEATURE_LENGTHS', 'LEARNING_RATE', 'TRAIN_STEPS'}
}
_VERSIONS = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'sacrebleu')


def main(program: str, argv: Sequence[str] | None = None) -> None:
  """Run a program: the function named like its module, with arguments from flags and gin.

  Args:
    program: Module of the program, such as `cascades.train`.
    argv: Arguments with the program's name first, by default those of the process.
  """
  environment.prepare()
  environment.warn_of_namesake()  # where its `cascades/__init__.py` has replaced ours
  _start_logging()
  with stopping.on_sigterm(stopping.leave):
    try:
      _main(program, argv)
    except stopping.Preempted as ended:  # also while modules are imported
      print(f'{program}: {ended.message}', file=sys.stderr)
      raise


@contextlib.contextmanager
def ending(program: str, *, traceback: bool = False) -> Iterator[None]:
  """Context manager that turns errors into a message on stderr and an exit code."""
  try:
    yield
  except (ValueError, OSError, ArithmeticError, ImportError) as error:
    if traceback:
      raise
    _end(1, f'{program}: error: {_sentence(error)}\n(--traceback prints where)')
  except RuntimeError as error:
    if traceback or not _is_one_of_several():
      raise
    _end(
      stopping.TRY_AGAIN,
      f'{program}: another process of the run failed or was lost; see its log. Rerun the same '
      f'command to resume from the last checkpoint. ({_sentence(error).splitlines()[0]})',
    )
  except KeyboardInterrupt:
    _end(1, f'{program}: interrupted; rerun the same command to resume from the last checkpoint.')


def _main(program: str, argv: Sequence[str] | None) -> None:
  _define_flags(program)
  module = importlib.import_module(program)
  function = getattr(module, program.rpartition('.')[2])
  sys.modules['__main__'].__doc__ = _help(module, function)
  flags.adopt_module_key_flags(sys.modules[__name__])

  def run(_: Sequence[str]) -> None:
    with ending(program, traceback=_TRACEBACK.value):
      _start_processes()
      large = _flag('large_model') and model_of(program, _flag('large_model'), _SEARCH_PATHS.value)
      configure(program, _FILES.value, _BINDINGS.value, _SEARCH_PATHS.value)
      if large:
        gin.bind_parameter('LARGE_MODEL/macro.value', large)
      _finalize(_REQUIRED.get(program))
      _call(function)

  arguments = list(sys.argv if argv is None else argv)
  # --gin.NAME=value is short for --gin_bindings=NAME=value.
  short = functools.partial(re.sub, r'^--?gin\.(?=[^=]+=)', '--gin_bindings=')
  app.run(run, argv=list(map(short, arguments)))


def _define_flags(program: str) -> None:
  """Define the flags that not every program honors, in those that do."""
  for name in _SOME_PROGRAMS & set(flags.FLAGS):
    delattr(flags.FLAGS, name)
  name = program.rpartition('.')[2]
  if name in ('train', 'infer', 'cache_teacher'):
    flags.DEFINE_string(
      'profile_steps', None, 'Write a profiler trace of steps a to b: --profile_steps=10:15.'
    )
  if name == 'plan':
    flags.DEFINE_string('topology', None, 'Devices to plan for, as v4:2x2x4 or v5e:4x4.')
    flags.DEFINE_string(
      'large_model',
      None,
      "A gin file with the large model's sizes, to plan without its checkpoint.",
    )
  if name not in ('evaluate', 'plan'):
    flags.DEFINE_boolean(
      'multihost', False, 'Run as one of several processes; TPU pods need no other flag.'
    )
    flags.DEFINE_string('coordinator_address', None, 'host:port of process 0.')
    flags.DEFINE_integer('process_count', None, 'Number of processes.')
    flags.DEFINE_integer('process_index', None, 'Index of this process, from 0.')
    flags.DEFINE_integer(
      'heartbeat_timeout', 100, 'Seconds of silence after which another process counts as dead.'
    )


def _flag(name: str) -> Any:
  """A flag's value; None in programs without the flag."""
  return flags.FLAGS[name].value if name in flags.FLAGS else None


def configure(
  program: str, files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str] = ()
) -> None:
  """Read gin files, then bindings that override them."""
  del gin.config._FILE_READERS[1:]  # gin takes folders here, as runs/, for packages and trips
  for path in ('', *search_paths, *map(str, search_path())):
    gin.add_config_file_search_path(path)
  modules = (program, *_MODULES.get(program, _USUAL))
  imports = [f'from {m.rpartition(".")[0]} import {m.rpartition(".")[2]}' for m in modules]
  preamble = ['from __gin__ import dynamic_registration', *imports]
  absl_logging.set_verbosity(absl_logging.FATAL)  # gin reports every folder that it looks into
  try:
    for file in [*files, *_LAST_FILES.get(program, [])]:
      gin.parse_config_file(file)
    gin.parse_config([*preamble, *(_completed(binding, program) for binding in bindings)])
  except (ValueError, NameError, AttributeError, SyntaxError) as error:
    raise ValueError(f'{error}{_suggestion(str(error), modules)}') from error
  except ImportError as error:
    raise ImportError(f'{error}{_import_hint(error)}') from error
  finally:
    absl_logging.set_verbosity(absl_logging.ERROR)


def model_of(program: str, file: str, search_paths: Sequence[str] = ()) -> Any:
  """The MODEL of a gin file. The configuration is empty before and after."""
  gin.clear_config()
  configure(program, [file], ['LARGE_MODEL = %MODEL'], search_paths)
  model = gin.get_bindings('setup.LargeModel')['config']
  gin.clear_config()
  return model


def _finalize(required: set[str] | None = None) -> None:
  """Check that every required macro is set; those that are not in `required` become None."""
  if required is not None:
    macros = re.findall(r'^(\w+) = %gin\.REQUIRED$', gin.config_str(), re.MULTILINE)
    for name in set(macros) - required:
      gin.bind_parameter(f'{name}/macro.value', None)
  try:
    gin.finalize()
  except ValueError as error:
    name = re.match(r'(\w+)/macro.value set to `%gin.REQUIRED`', str(error))
    if name:
      raise ValueError(f'{name[1]} is required: set it with --gin.{name[1]}=VALUE.') from error
    raise


def search_path() -> list[pathlib.Path]:
  """Folders of gin files: beside the package in a checkout, inside it in an installation."""
  package = pathlib.Path(__file__).parent
  root = package if (package / 'gin_configs').is_dir() else package.parent
  return [root / 'gin_configs', root]


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


def _run_provenance() -> dict[str, str]:
  """`provenance`, and the arguments of functions that are passed on uncalled, as @losses.dist."""
  names = sorted(set(re.findall(r'@([\w.]+)(?![\w.]*[(/])', gin.config_str())))
  bound = {
    f'{name}.{key}': value for name in names for key, value in gin.get_bindings(name).items()
  }
  text = json.dumps(bound, default=lambda value: type(value).__name__)
  return provenance() | {'bindings': text}


def _call(function: Callable[..., Any]) -> None:
  given = {name: _flag(name) for name in ('topology', 'profile_steps')}
  settings: dict[str, Any] = {name: value for name, value in given.items() if value}
  if 'provenance' in inspect.signature(function).parameters:
    settings['provenance'] = _run_provenance if function.__name__ == 'train' else provenance
  gin.get_configurable(function)(**settings)


def _completed(binding: str, program: str) -> str:
  """Complete a binding of the command line for gin.

  A value that is neither a reference nor a Python literal is text: NAME=runs/demo/large. A
  program's function has its module's name, so train.seed is short for train.train.seed.
  """
  name, _, value = map(str.strip, binding.partition('='))
  short = program.rpartition('.')[2]
  if re.fullmatch(rf'{short}\.\w+', name):
    name = f'{short}.{name}'
  if (
    value and value[0] not in '@%([{'
  ):  # gin parses references, and literals that may hold references
    try:
      ast.literal_eval(value)
    except (ValueError, SyntaxError):
      value = repr(value)
  return f'{name} = {value}'


def _start_logging() -> None:
  absl_logging.set_verbosity(absl_logging.ERROR)
  handler = logging.StreamHandler(sys.stdout)
  handler.setFormatter(logging.Formatter('%(asctime)s  %(message)s', '%H:%M:%S'))
  logger = logging.getLogger('cascades')
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  logger.propagate = False


def _start_processes() -> None:
  if not (_flag('multihost') or _flag('coordinator_address')):
    return
  import jax

  jax.distributed.initialize(
    _flag('coordinator_address'),
    _flag('process_count'),
    _flag('process_index'),
    heartbeat_timeout_seconds=_flag('heartbeat_timeout'),
    shutdown_timeout_seconds=_flag('heartbeat_timeout'),
  )


def _is_one_of_several() -> bool:
  jax = sys.modules.get('jax')  # evaluate runs without
  return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def _end(code: int, message: str) -> None:
  """Print a message and exit, at once if one of several: JAX would wait for the other processes."""
  print(message, file=sys.stderr, flush=True)
  if _is_one_of_several():
    sys.stdout.flush()
    os._exit(code)
  sys.exit(code)


def _sentence(error: BaseException) -> str:
  """An error's message without the call that gin appends to it."""
  text = re.split(r'\n\s*In call to configurable|\n\s*In file ', str(error))[0].strip()
  return text if text and not isinstance(error, KeyError) else repr(error)


def _suggestion(message: str, modules: Iterable[str]) -> str:
  """Names that an error's unknown name may stand for."""
  unknown = re.search(r'selector ([\w.]+)|@([\w.]+)', message)
  names = {
    f'{name.rpartition(".")[2]}.{key}': None
    for name in modules
    for key in vars(importlib.import_module(name))
    if not key.startswith('_')
  }
  near = difflib.get_close_matches((unknown[1] or unknown[2]) if unknown else '', names, 3, 0.6)
  parameter = re.search(r"doesn't have a parameter named '(\w+)'", message)
  if parameter:  # perhaps of a config object, as train.log_every is of setup.Schedule
    bound = rf'^([\w.]+\.{parameter[1]}) = (?:%(\w+))?'
    near = [macro or name for name, macro in re.findall(bound, gin.config_str(), re.MULTILINE)]
  return f'\n  Did you mean {" or ".join(near)}?' if near else ''


def _import_hint(error: ImportError) -> str:
  """Imports of modules of this package whose name an import did not find."""
  package = pathlib.Path(__file__).parent
  sought = re.search(r"cannot import name '(\w+)'|No module named 'cascades\.([\w.]+)'", str(error))
  stem = sought and (sought[1] or sought[2].rpartition('.')[2])
  paths = [path.relative_to(package) for path in sorted(package.rglob(f'{stem}.py'))]
  imports = ['.'.join(('cascades', *path.parts[:-1])) for path in paths]
  hints = ' or '.join(f'`from {name} import {stem}`' for name in imports)
  return f'\n  {hints} imports the module of this name.' if hints else ''


def _help(module: Any, function: Callable[..., Any]) -> str:
  """Help text: the program's docstring, recipes, arguments and exit codes."""
  name = function.__name__
  lines = [inspect.getdoc(module) or '', '', 'Recipes (--gin_file=recipes/...):', '']
  for recipe in sorted((search_path()[0] / 'recipes').glob('*.gin')):
    first = recipe.read_text().partition('\n')[0].lstrip('# ')
    lines.append(f'  {recipe.name:34}{first}')
  lines += ['', 'Settings (--gin.NAME=VALUE), with their defaults:', '']
  for file in ('runs/train.gin', 'runs/plan.gin') if name == 'plan' else (f'runs/{name}.gin',):
    lines += _settings(file)
  lines += [
    '',
    'Exit codes: 0 success; 1 error; 75 ended by SIGTERM or because another process of the run was',
    'lost. After 75 all checkpoints are complete: rerun the same command to resume.',
  ]
  return '\n'.join([*lines, ''])


def _settings(file: str) -> Iterator[str]:
  """Lines of a gin file, and of those that it includes, that set macros."""
  for line in (search_path()[0] / file).read_text().splitlines():
    if include := re.match(r"include '(.+)'", line):
      yield from _settings(include[1])
    elif re.match(r'[A-Z_]+ = ', line):
      yield '  ' + line.replace('%gin.REQUIRED', '(required)')
