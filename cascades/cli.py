"""Command line of the programs: flags, gin files and bindings; errors as sentences.

    python -m cascades.train --gin_file=recipes/demo_large.gin --gin.TRAIN_STEPS=500

Files set macros and bindings; `--gin.NAME=value` overrides them. Both may name functions of this
package (`--gin.LOSS=@losses.cat_dist`) and of modules that `--import` names. On the command line a
value that is not a Python literal is text (`--gin.MODEL_DIR=runs/mine`). Relative gin files are
searched for in the working directory, in gin_configs/ and in `--gin_search_paths`. `settings/`
reads and checks them.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import os
import re
import sys
import traceback as tracebacks
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gin
from absl import app, flags
from absl import logging as absl_logging

from cascades.reporting import escaping
from cascades.runtime import environment, stopping
from cascades.settings import checking, help_text, provenance
from cascades.settings.reading import configure, model_of

_FILES = flags.DEFINE_multi_string('gin_file', [], 'A gin file; repeat for several.')
_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings', [], 'A binding, "NAME=value"; --gin.NAME=value is short for it.'
)
_IMPORTS = flags.DEFINE_multi_string(
  'import', [], 'A module of yours whose functions settings may name; repeat for several.'
)
_SEARCH_PATHS = flags.DEFINE_list(
  'gin_search_paths', [], 'Folders to search for gin files, besides the usual ones.'
)
_UNREAD = flags.DEFINE_enum(
  'unread_settings', 'error', ['error', 'warn'], 'Reaction to a setting that nothing reads.'
)
_TRACEBACK = flags.DEFINE_boolean('traceback', False, 'Print the traceback of an error.')

# Flags that `_define_flags` defines only in the programs that honor them.
_SOME_PROGRAMS = {
  'profile_steps',
  'topology',
  'large_model',
  'check',
  'dry_run',
  'multihost',
  'coordinator_address',
  'process_count',
  'process_index',
  'heartbeat_timeout',
}


def main(program: str, argv: Sequence[str] | None = None) -> None:
  """Run a program: the function named like its module, with arguments from flags and gin.

  Args:
    program: Module of the program, such as `cascades.train`.
    argv: Arguments with the program's name first, by default those of the process.
  """
  environment.prepare()
  environment.warn_of_namesake()  # where its `cascades/__init__.py` has replaced ours
  _start_logging()
  with stopping.on_signals(stopping.leave):
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
  except Exception as error:
    if traceback:
      print(escaping.lines(tracebacks.format_exc()), file=sys.stderr)
    if stopping.out_of_memory(error):
      _end(
        1,
        f'{program}: error: out of memory; lower BATCH_SIZE, or raise MICROBATCHES or the '
        f'number of devices. ({_sentence(error).splitlines()[0]})\n(--traceback prints where)',
      )
    if stopping.lost_a_process(error) and _is_one_of_several():
      _end(
        stopping.TRY_AGAIN,
        f'{program}: another process of the run failed or was lost; see its log. Rerun the same '
        f'command to resume from the last checkpoint. ({_sentence(error).splitlines()[0]})',
      )
    code = getattr(error, 'exit_code', 1)
    _end(code, f'{program}: error: {_sentence(error)}\n(--traceback prints where)')
  except KeyboardInterrupt:
    _end(1, f'{program}: interrupted; rerun the same command to go on from what is saved.')


def help_and_exit(command: Sequence[str]) -> None:
  """Print the help of the program that `python -m` is about to run, if it has this command line."""
  program = command[command.index('-m') + 1] if '-m' in command else ''
  if help_text.exists(program):
    print(help_of(program))
    sys.exit()


def help_of(program: str) -> str:
  """Help text of a program, which is not imported."""
  _define_flags(program)
  meanings = {
    flag.name: flag.help.partition(';  ')[0]
    for flag in flags.FLAGS.get_key_flags_for_module(__name__)
  }
  return help_text.of_program(program, meanings)


def _main(program: str, argv: Sequence[str] | None) -> None:
  arguments = list(sys.argv if argv is None else argv)
  if environment.asks_for_help(arguments[1:]):
    print(help_of(program))
    return
  _define_flags(program)
  if os.getcwd() not in sys.path and '' not in sys.path:
    sys.path.append(os.getcwd())  # where the user's modules lie, also for the command `cascades`
  module = importlib.import_module(program)
  function = getattr(module, program.rpartition('.')[2])

  def run(arguments: Sequence[str]) -> None:
    with ending(program, traceback=_TRACEBACK.value):
      environment.raise_on_interrupt()
      _refuse_words(arguments[1:])
      _start_processes()
      paths = _SEARCH_PATHS.value
      large = _flag('large_model') and model_of(program, _flag('large_model'), paths)
      absl_logging.set_verbosity(absl_logging.ERROR)
      settings = configure(program, _FILES.value, _BINDINGS.value, paths, _IMPORTS.value)
      if large:
        gin.bind_parameter('LARGE_MODEL/macro.value', large)
      checking.finish(
        settings,
        optional=frozenset(getattr(module, 'OPTIONAL_SETTINGS', ())),
        on_unread=checking.refuse if _UNREAD.value == 'error' else checking.warn,
      )
      _call(function)

  # --gin.NAME=value is short for --gin_bindings=NAME=value.
  app.run(run, argv=[re.sub(r'^--?gin\.', '--gin_bindings=', word) for word in arguments])


def _refuse_words(words: Sequence[str]) -> None:
  """Refuse arguments that are no flags."""
  for word in words:
    way = f'--gin_file={word}' if word.endswith('.gin') else f'--gin.{word}'
    raise ValueError(
      f'{word!r} is not understood: files are given as --gin_file=FILE, settings as '
      f'--gin.NAME=VALUE{f"; write {way}" if "=" in word or word.endswith(".gin") else ""}.'
    )


def _define_flags(program: str) -> None:
  """Define the flags that not every program honors, in those that do."""
  for name in _SOME_PROGRAMS & set(flags.FLAGS):
    delattr(flags.FLAGS, name)
  name = program.rpartition('.')[2]
  if name in ('train', 'infer', 'cache_teacher'):
    flags.DEFINE_string(
      'profile_steps', None, 'Write a profiler trace of steps a to b: --profile_steps=10:15.'
    )
  if name == 'calibrate':
    flags.DEFINE_boolean('check', False, 'Short for --gin.CHECK=True.')
  if name == 'serve':
    flags.DEFINE_boolean('dry_run', False, 'Short for --gin.DRY_RUN=True.')
  if name == 'plan':
    flags.DEFINE_string('topology', None, 'Devices to plan for, as v4:2x2x4 or v5e:4x4.')
    flags.DEFINE_string(
      'large_model',
      None,
      "A gin file with the large model's sizes, to plan without its checkpoint.",
    )
  if name not in environment.ONE_PROCESS:
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


def _call(function: Callable[..., Any]) -> None:
  given = {name: _flag(name) for name in ('topology', 'profile_steps', 'check', 'dry_run')}
  settings: dict[str, Any] = {name: value for name, value in given.items() if value}
  if 'provenance' in inspect.signature(function).parameters:
    training = function.__name__ == 'train'
    settings['provenance'] = provenance.of_training if training else provenance.provenance
  gin.get_configurable(function)(**settings)


class VisibleFormatter(logging.Formatter):
  """Escapes what would act on a terminal: names in files of strangers reach log lines."""

  def format(self, record: logging.LogRecord) -> str:
    return escaping.lines(super().format(record))


def _start_logging() -> None:
  absl_logging.set_verbosity(absl_logging.ERROR)
  handler = logging.StreamHandler(sys.stdout)
  handler.setFormatter(VisibleFormatter('%(asctime)s  %(message)s', '%H:%M:%S'))
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
  print(escaping.lines(message), file=sys.stderr, flush=True)
  if _is_one_of_several():
    sys.stdout.flush()
    os._exit(code)
  sys.exit(code)


def _sentence(error: BaseException) -> str:
  """An error's message without the calls that gin appends to it; its type where that matters."""
  appended = r'\n\s*(?:In call to configurable|In file |No values supplied by Gin)'
  text = re.split(appended, str(error))[0].strip()
  name = type(error).__name__
  if isinstance(error, MemoryError):
    return f'out of memory. {text}'.strip()
  if isinstance(error, ValueError | OSError | ArithmeticError | ImportError):
    return text or name
  return f'{name}: {text}' if text else name
