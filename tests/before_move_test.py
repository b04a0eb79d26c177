"""Artefacts of commit 8380362, before modules moved: still readable, and the same to the last bit.

The adapters are the only lines that name functions of the package. The rest runs programs as
commands, with their macros, on copies of `golden/before_move/work`.
"""

from __future__ import annotations

import csv
import functools
import json
import multiprocessing
import os
import pathlib
import platform
import re
import runpy
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import traverse_util

from cascades import bootstrap, costs, curves, deferral, losses, masks, metrics, teachers
from cascades.models import t5
from cascades.models.abstract import abstract_model, init_params
from cascades.runtime import partitioning
from cascades.training import optimizers, train_step
from cascades.types import Batch
from tests import synthetic_tables

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'before_move'
WORK = GOLDEN / 'work'

Numbers = Mapping[str, np.ndarray]


# -- adapters --------------------------------------------------------------------------------------

LOSSES = (
  'xent', 'dist', 'cat_xent', 'cat_dist', 'cat_xent_l', 'cat_xent_s', 'cat_dist_l', 'cat_dist_s',
)  # fmt: skip
MASKS = ('small_correct', 'large_correct', 'either_correct')
TEACHERS = {
  'none': lambda logits: (),
  'logits': lambda logits: (teachers.Logits(logits),),
  'top1': lambda logits: (teachers.to_top1(logits),),
  'top4': lambda logits: (teachers.to_top_k(logits, k=4),),
  'top4 in float16': lambda logits: (teachers.to_top_k(logits, k=4, dtype='float16'),),
}
# Losses that are trained by, with the positions of a block of logits; None is the default.
STEPPED = {'xent': None, 'dist': None, 'cat_xent': None, 'cat_dist': 3}

B, S, T, V = 8, 5, 6, 24
SMALL = t5.Config(
  V, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
)
LARGE = t5.Config(
  V, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
)


def loss_and_gradient(name: str, teacher: str, given: Numbers) -> tuple[Any, Any, Any]:
  """Sum, count, and the sum's gradient to the small logits."""
  loss = getattr(losses, name)

  def total(small: Any, large: Any, targets: Any, weights: Any) -> Any:
    return loss(small, TEACHERS[teacher](large), targets, weights)

  function = jax.jit(jax.value_and_grad(total, has_aux=True))
  (value, count), gradient = function(
    given['small'], given['large'], given['targets'], given['weights']
  )
  return value, count, gradient


def mask(name: str, teacher: str, given: Numbers) -> Any:
  large = TEACHERS[teacher](given['large'])
  return getattr(masks, name)(jax.numpy.asarray(given['small']), large, given['targets'])


def agreement(teacher: str, given: Numbers) -> Mapping[str, Any]:
  large = TEACHERS[teacher](given['large'])
  small = jax.numpy.asarray(given['small'])
  return masks.count_agreement(small, large, given['targets'], given['weights'])


def initial_parameters() -> tuple[Any, Any]:
  """Of the small and of the large model."""
  with partitioning.use(_one_device()):
    return tuple(
      init_params(config, seed, abstract_model(config)[1])
      for seed, config in enumerate((SMALL, LARGE))
    )


def two_steps(loss: str, small: Any, large: Any) -> tuple[Any, list[Any], Any]:
  """Parameters after two steps beside the large model, each step's totals, those of `eval_step`."""
  optimizer = optimizers.adamw(optimizers.constant(1e-2))
  with partitioning.use(_one_device()):
    models = {
      name: train_step.ModelDef(abstract_model(config)[0], V)
      for name, config in (('small', SMALL), ('large', LARGE))
    }
    frozen = train_step.Frozen(large)
    state = train_step.init_state(small, optimizer, seed=0)
    options = {**models, 'loss': getattr(losses, loss), 'block_length': STEPPED[loss]}
    step = jax.jit(functools.partial(train_step.train_step, **options, optimizer=optimizer))
    evaluate = jax.jit(functools.partial(train_step.eval_step, **options))
    history = []
    for batch in _batches(2):
      state, totals = step(state, frozen, batch)
      history.append(totals)
    return state.params, history, evaluate(state.params, frozen, batch)


def _one_device() -> Any:
  return partitioning.make_mesh(devices=jax.devices()[:1])


def _batches(count: int) -> Iterator[Batch]:
  """Targets of unequal length that depend on the source."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    encoder = rng.integers(3, V, (B, S)).astype(np.int32)
    targets = np.concatenate([encoder[:, ::-1], encoder[:, :1]], 1)
    weights = (np.arange(T) < rng.integers(1, T + 1, (B, 1))).astype(np.float32)
    yield Batch(np.pad(targets, ((0, 0), (1, 0)))[:, :-1], targets, weights, encoder)


def curve_numbers(given: Numbers) -> dict[str, Any]:
  """Rules, curves, areas and bootstrap of a table of single examples."""
  score, small, large, rates = (given[name] for name in ('score', 'small', 'large', 'rates'))
  cost = functools.partial(costs.cascade, small=2.0, large=8.0)
  curve = curves.deferral_curve(score, small, large, metrics.ratio, cost)
  by_small, by_large = curves.decomposition(score, small[:, 0], large[:, 0])
  counts = bootstrap.draw([25, 15], resamples=50, seed=0)
  resamples = bootstrap.resample(counts, score, small, large, metrics.ratio, rates=rates)
  numbers = {f'curve {name}': column for name, column in curve._asdict().items()}
  numbers |= {f'resampled {name}': column for name, column in resamples._asdict().items()}
  numbers |= {
    f'rule {name}': rule(given['logprobs'], given['mask']) for name, rule in deferral.PAPER.items()
  }
  return numbers | {
    'by small': by_small,
    'by large': by_large,
    'area': curves.area(curve),
    'area above chord': curves.area_above_chord(curve),
    'quality at cost': [curves.quality_at_cost(curve, cost) for cost in (1.0, 3.3, 7.7)],
    'cost at quality': [curves.cost_at_quality(curve, quality) for quality in (0.4, 0.5, 0.99)],
    'threshold': [curves.threshold_for(curve, budget) for budget in (0.0, 0.25, 1.0)],
    'counts': counts,
    'band': bootstrap.interval(resamples.quality),
    'estimate': bootstrap.estimate(curves.area(curve), resamples.area),
    'difference': bootstrap.difference(0.01, resamples.above_chord),
  }


def compared_numbers() -> dict[str, Any]:
  """Two small models beside a large one on two tasks, by `compare.compare`."""
  compared = synthetic_tables.comparison()
  numbers = {}
  for cascade in compared.cascades:
    name = f'{cascade.model}, {cascade.score}, {cascade.task}'
    numbers[f'{name}: estimates'] = [list(x) for x in cascade.estimates.values()]
    if cascade.task not in compared.sizes:
      numbers[f'{name}: band'] = [cascade.low, cascade.high]
  for pair in compared.differences:
    name = f'{pair.model} - {pair.baseline}, {pair.score}'
    numbers[f'{name}: differences'] = [list(x) for x in pair.estimates.values()]
  return numbers


# -- numbers as artefacts --------------------------------------------------------------------------


def loss_inputs() -> dict[str, np.ndarray]:
  """Logits of both models; every other target is a model's own first choice, some weights are 0."""
  rng = np.random.default_rng(0)
  small, large = rng.normal(size=(2, 24, 11)).astype(np.float32) * 2
  targets = rng.integers(11, size=24).astype(np.int32)
  targets[::4] = small[::4].argmax(-1)
  targets[1::4] = large[1::4].argmax(-1)
  weights = (rng.random(24) < 0.8).astype(np.float32)
  return {'small': small, 'large': large, 'targets': targets, 'weights': weights}


def loss_numbers(given: Numbers) -> dict[str, Any]:
  """All losses with all teachers that they take, the masks, and the counts of agreement."""
  numbers = {}
  for teacher in TEACHERS:
    for name in LOSSES:
      try:
        values = loss_and_gradient(name, teacher, given)
      except ValueError:  # asks for more than this teacher knows
        continue
      for quantity, value in zip(('sum', 'count', 'gradient'), values, strict=True):
        numbers[f'{name}, {teacher}: {quantity}'] = value
    for name in MASKS if teacher != 'none' else MASKS[:1]:
      numbers[f'{name}, {teacher}'] = mask(name, teacher, given)
    for name, value in agreement(teacher, given).items():
      numbers[f'{name}, {teacher}'] = value
  return numbers


def step_numbers(small: Any, large: Any) -> dict[str, Any]:
  numbers = {}
  for loss in STEPPED:
    params, history, evaluated = two_steps(loss, small, large)
    trees = {'params': params, 'step 1': history[0], 'step 2': history[1], 'eval': evaluated}
    numbers |= {
      f'{loss}: {name}': value
      for name, value in flat(trees).items()
      if not re.search('/rows', name)  # the counts of rows are newer
    }
  return numbers


def curve_inputs() -> dict[str, np.ndarray]:
  """Forty examples, some of equal score."""
  rng = np.random.default_rng(0)
  hits = [np.stack([rng.random(40) < share, np.ones(40)], 1).astype(float) for share in (0.4, 0.7)]
  lengths = rng.integers(0, 7, 40)
  return {
    'score': rng.normal(size=40).round(1),
    'small': hits[0],
    'large': hits[1],
    'rates': np.linspace(0, 1, 21),
    'logprobs': -rng.exponential(size=(40, 6)),
    'mask': np.arange(6) < lengths[:, None],
  }


def flat(tree: Any) -> dict[str, np.ndarray]:
  """Every array by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in leaves
  }


def below(name: str, numbers: Numbers) -> dict[str, np.ndarray]:
  """What lies under `name/`, by the rest of its path."""
  start = f'{name}/'
  return {key[len(start) :]: value for key, value in numbers.items() if key.startswith(start)}


def host() -> dict[str, Any]:
  """All that decides about the last bits of a float: versions, and the CPU's vector units."""
  versions = {name: metadata.version(name) for name in ('jax', 'jaxlib', 'numpy', 'optax', 'flax')}
  path = pathlib.Path('/proc/cpuinfo')
  cpuinfo = path.read_text() if path.exists() else ''
  flags = re.search(r'^flags\s*:(.*)$', cpuinfo, re.MULTILINE)
  vectors = r'avx\w*|fma\w*|amx\w*|sse\w*|f16c'
  units = sorted(
    {flag for flag in flags[1].split() if re.fullmatch(vectors, flag)} if flags else ()
  )
  return {'machine': platform.machine(), 'vector units': units, **versions}


# -- programs --------------------------------------------------------------------------------------

# One device, and compiled as `conftest` has it.
ENVIRONMENT = {
  'XLA_FLAGS': '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false',
}
TASK = (
  '--gin.TASK=@local.local_jsonl()',
  '--gin.local.local_jsonl.name=letters',
  "--gin.local.local_jsonl.metrics=('token_f1', 'accuracy')",
  "--gin.local.local_jsonl.splits={'train': 'train.jsonl', 'validation': 'validation.jsonl', "
  "'test': 'test.jsonl'}",
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}",
  '--gin.BATCH_SIZE=16',
  '--gin.RECORDS_DIR=records',
)
T5 = ('--gin.MODEL=@t5.Config()', '--gin.t5.Config.vocab_size=260')
ONE_LAYER = ('--gin.t5.Config.num_encoder_layers=1', '--gin.t5.Config.num_decoder_layers=1')
SMALL_T5 = (
  *T5, *ONE_LAYER, '--gin.t5.Config.emb_dim=8', '--gin.t5.Config.num_heads=1',
  '--gin.t5.Config.head_dim=8', '--gin.t5.Config.mlp_dim=16', '--gin.t5.Config.dropout_rate=0.1',
)  # fmt: skip
LARGE_T5 = (
  *T5, *ONE_LAYER, '--gin.t5.Config.emb_dim=8', '--gin.t5.Config.num_heads=2',
  '--gin.t5.Config.head_dim=8', '--gin.t5.Config.mlp_dim=32',
  '--gin.t5.Config.logits_via_embedding=True',
)  # fmt: skip
DECODER = (
  '--gin.MODEL=@decoder.Config()', '--gin.decoder.Config.vocab_size=260',
  '--gin.decoder.Config.emb_dim=8', '--gin.decoder.Config.num_heads=2',
  '--gin.decoder.Config.num_kv_heads=1', '--gin.decoder.Config.num_layers=1',
  '--gin.decoder.Config.head_dim=4', '--gin.decoder.Config.mlp_dim=16',
)  # fmt: skip
ADAMW = ('--gin.OPTIMIZER=@optimizers.adamw', '--gin.LEARNING_RATE=2e-2')
# How each run directory was trained, but for its number of steps.
RUNS = {
  'large': (*LARGE_T5, '--gin.LEARNING_RATE=3e-2'),
  'small': (*SMALL_T5, *ADAMW, '--gin.LOSS=@losses.cat_dist', '--gin.LARGE_CHECKPOINT_PATH=large'),
  'decoder': (*DECODER, '--gin.LEARNING_RATE=2e-2', '--gin.PACK_LENGTH=32'),
  'adapted': (
    *SMALL_T5, *ADAMW, '--gin.ADAPTERS=@lora.Config()', '--gin.lora.Config.rank=2',
    '--gin.INITIAL_CHECKPOINT_PATH=small',
  ),
}  # fmt: skip
STEPS = {'large': 400, 'small': 60, 'decoder': 2, 'adapted': 2}
CONTINUED = ('small', 'decoder', 'adapted')  # each by two steps
CACHES = {'top1': ('None', 'cat_xent'), 'top4': ('4', 'cat_dist')}  # TOP_K, a loss that it serves
TABLES = (
  ('large', 'predict'), ('small', 'predict'), ('decoder', 'predict'), ('adapted', 'predict'),
  ('large', 'score'), ('small', 'score'),
)  # fmt: skip
REPORTS = {'predict': ('small', 'adapted'), 'score': ('small',)}


class Command(NamedTuple):
  program: str
  arguments: Sequence[str]


def training(run: str, steps: int) -> Command:
  arguments = ('--gin_file=runs/train.gin', *TASK, *RUNS[run])
  directory, total = f'--gin.MODEL_DIR={run}', f'--gin.TRAIN_STEPS={steps}'
  return Command('cascades.train', (*arguments, directory, total))


def caching(cache: str) -> Command:
  return Command(
    'cascades.cache_teacher',
    ('--gin_file=runs/cache_teacher.gin', *TASK, '--gin.CHECKPOINT_PATH=large',
     f'--gin.TEACHER_CACHE=cache/{cache}', f'--gin.TOP_K={CACHES[cache][0]}'),
  )  # fmt: skip


def training_by(cache: str) -> Command:
  """Two steps of a new run that reads a teacher cache."""
  return Command(
    'cascades.train',
    ('--gin_file=runs/train.gin', *TASK, *SMALL_T5, *ADAMW, '--gin.TRAIN_STEPS=2',
     f'--gin.LOSS=@losses.{CACHES[cache][1]}', f'--gin.TEACHER_CACHE=cache/{cache}',
     f'--gin.MODEL_DIR=by_{cache}'),
  )  # fmt: skip


def inference(run: str, mode: str, output: str = 'predictions') -> Command:
  return Command(
    'cascades.infer',
    ('--gin_file=runs/infer.gin', *TASK, f'--gin.CHECKPOINT_PATH={run}', f'--gin.MODE={mode}',
     f'--gin.INFER_OUTPUT_DIR={output}/{run}'),
  )  # fmt: skip


def evaluation(mode: str, output: str = 'report') -> Command:
  small = {run: f'predictions/{run}' for run in REPORTS[mode]}
  return Command(
    'cascades.evaluate',
    ('--gin_file=runs/evaluate.gin', f'--gin.SMALL={small}', '--gin.LARGE=predictions/large',
     f'--gin.MODE={mode}', '--gin.RESAMPLES=40', f'--gin.EVAL_OUTPUT_DIR={output}/{mode}'),
  )  # fmt: skip


COMMANDS = {
  **{f'continue {run}': training(run, STEPS[run] + 2) for run in CONTINUED},
  **{f'train by {cache}': training_by(cache) for cache in CACHES},
  **{f'cache {cache} again': caching(cache) for cache in CACHES},
  **{f'infer {run}, {mode}': inference(run, mode, 'again') for run, mode in TABLES},
  **{f'evaluate {mode}': evaluation(mode, 'again') for mode in REPORTS},
}
# Each program once; the other commands are slow.
QUICK = {
  'continue adapted', 'cache top1 again', 'infer small, predict',
  'infer small, score', 'evaluate predict', 'evaluate score',
}  # fmt: skip


def arrays(run: pathlib.Path, step: int) -> dict[str, np.ndarray]:
  """All that a checkpoint holds, read without the package."""
  import orbax.checkpoint as ocp

  path = run / f'checkpoint_{step}' / 'state'
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    tree = checkpointer.metadata(path).item_metadata.tree
    plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return flat(checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=plain)))


def parameters(run: pathlib.Path, step: int) -> dict[str, np.ndarray]:
  return {name: array for name, array in arrays(run, step).items() if name.startswith('params/')}


# -- running and comparing -------------------------------------------------------------------------

FORKS = multiprocessing.get_context('forkserver')
PROGRAMS = ('cascades.train', 'cascades.infer', 'cascades.cache_teacher', 'cascades.evaluate')
FORKS.set_forkserver_preload(['tests.before_move_test', 'tests.tiny', 'cascades.cli', *PROGRAMS])


class Outcome(NamedTuple):
  directory: pathlib.Path
  code: int | None
  output: str


def run_forked(command: Command, directory: pathlib.Path) -> Outcome:
  """As `python -m` in that folder, forked from a process that has imported everything."""
  log = directory.parent / f'{directory.name}.log'
  process = FORKS.Process(target=_be_program, args=(command, directory, log))
  process.start()
  process.join(timeout=240)
  process.kill()
  return Outcome(directory, process.exitcode, log.read_text() if log.exists() else '')


def _be_program(command: Command, directory: pathlib.Path, log: pathlib.Path) -> None:
  with log.open('w') as stream:
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
  os.environ.update(ENVIRONMENT)  # JAX reads it when it is first asked for devices
  os.chdir(directory)
  sys.argv = [command.program, *command.arguments]
  runpy.run_module(command.program, run_name='__main__', alter_sys=True)


def stamped(directory: pathlib.Path) -> dict[str, tuple[int, bytes]]:
  """Time and content of every file; `copytree` copies the times too."""
  return {
    str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes())
    for path in sorted(directory.rglob('*'))
    if path.is_file()
  }


def load(name: str) -> dict[str, np.ndarray]:
  with np.load(GOLDEN / f'{name}.npz', allow_pickle=False) as file:
    return dict(file)


@functools.cache
def exact() -> bool:
  """Whether floats have the same last bits here as where the artefacts come from."""
  return host() == json.loads((GOLDEN / 'host.json').read_text())


def assert_same(actual: Any, expected: Any, where: str = '', *, nearly: bool = False) -> None:
  """To the last bit; floats nearly where another CPU, version or batch shape computes them."""
  if isinstance(expected, Mapping):
    assert sorted(actual) == sorted(expected), where
    for name, value in expected.items():
      assert_same(actual[name], value, f'{where}/{name}', nearly=nearly)
  elif isinstance(expected, list) and not all(isinstance(x, float | int) for x in expected):
    assert len(actual) == len(expected), where
    for number, pair in enumerate(zip(actual, expected, strict=True)):
      assert_same(*pair, where=f'{where}/{number}', nearly=nearly)
  elif isinstance(expected, str | None):
    assert actual == expected, where
  else:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), where
    if (exact() and not nearly) or expected.dtype.kind not in 'fV':
      np.testing.assert_array_equal(actual, expected, where)
    else:
      np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5, err_msg=where)


def arrays_of(numbers: Mapping[str, Any]) -> dict[str, np.ndarray]:
  return {name: np.asarray(value) for name, value in numbers.items()}


# -- the tests -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def outcome(tmp_path_factory):
  """Of a command that has succeeded, in a copy of the artefacts of its own."""
  root = tmp_path_factory.mktemp('before_move')

  @functools.cache
  def of(name: str) -> Outcome:
    directory = shutil.copytree(WORK, root / name.replace(',', '').replace(' ', '_'))
    ended = run_forked(COMMANDS[name], directory)
    assert ended.code == 0, ended.output
    return ended

  return of


def each(cases: Iterable[Any], form: str = '{}') -> list[Any]:
  """Cases of a test, slow where their command is not QUICK."""
  return [
    pytest.param(case, marks=[] if form.format(case) in QUICK else pytest.mark.slow)
    for case in cases
  ]


def test_this_machine_computes_the_bits_of_the_one_that_wrote_the_artefacts():
  if not exact():
    pytest.skip('another CPU or another version: floats are only compared nearly')


@pytest.mark.slow
def test_losses_masks_and_agreement_are_the_same():
  given = load('losses')
  expected = below('expected', given)
  assert len(expected) > 100
  assert_same(arrays_of(loss_numbers(below('given', given))), expected)


@pytest.mark.slow
def test_initial_parameters_are_the_same():
  small, large = initial_parameters()
  golden = load('train_step')
  assert_same(flat(small), below('small', golden))
  assert_same(flat(large), below('large', golden))


@pytest.mark.slow
def test_training_and_evaluation_steps_are_the_same():
  golden = load('train_step')
  small, large = (
    traverse_util.unflatten_dict(below(name, golden), sep='/') for name in ('small', 'large')
  )
  expected = below('expected', golden)
  assert_same(common(step_numbers(small, large), expected), expected)  # steps count more since


def test_curves_and_bands_are_the_same():
  golden = load('curves')
  assert_same(arrays_of(curve_numbers(below('given', golden))), below('expected', golden))


def test_comparisons_are_the_same():
  assert_same(arrays_of(compared_numbers()), below('compared', load('curves')))


@pytest.mark.parametrize('run', each(CONTINUED, 'continue {}'))
def test_an_old_run_goes_on_where_it_stopped(outcome, run):
  directory, _, output = outcome(f'continue {run}')
  assert f'resuming from step {STEPS[run]}.' in output
  actual, expected = arrays(directory / run, STEPS[run] + 2), below(run, load('continued'))
  # Since then Adafactor's means are over each layer, and gradients are scaled in another place.
  close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-7)
  jax.tree.map(close, actual, expected)


@pytest.mark.parametrize('cache', each(CACHES, 'train by {}'))
def test_a_run_that_reads_an_old_teacher_cache_comes_out_the_same(outcome, cache):
  directory, _, _ = outcome(f'train by {cache}')
  expected = below(f'by_{cache}', load('continued'))
  # Counting the rows that are right changes the compiled step, and its last bits.
  assert_same(parameters(directory / f'by_{cache}', 2), expected, nearly=True)


@pytest.mark.parametrize('command', each(COMMANDS))
def test_old_records_are_read_and_not_written_again(outcome, command):
  directory, _, output = outcome(command)
  assert stamped(directory / 'records') == stamped(WORK / 'records')
  assert 'tokenised' not in output


@pytest.mark.parametrize('command', each(COMMANDS))
def test_old_teacher_caches_are_read_and_not_written_again(outcome, command):
  directory, _, output = outcome(command)
  before, after = stamped(WORK / 'cache'), stamped(directory / 'cache')
  if command.startswith('cache '):  # which may write the same vocabulary again
    before, after = (
      {name: stamp if 'vocabulary' not in name else stamp[1:] for name, stamp in files.items()}
      for files in (before, after)
    )
    assert '(1 of 1 shards existed)' in output
  assert after == before


@pytest.mark.parametrize('table', each(TABLES, 'infer {0[0]}, {0[1]}'))
def test_old_checkpoints_give_the_old_tables(outcome, table):
  run, mode = table
  directory, _, _ = outcome(f'infer {run}, {mode}')
  new, old = directory / 'again' / run / 'test', WORK / 'predictions' / run / 'test'
  (shard,) = (path.name for path in old.glob(f'*-{mode}.jsonl-*') if path.suffix != '.COMPLETED')
  answers = rows(new / shard)
  if mode == 'predict':  # tables of today also hold the lengths of prompts and answers
    for name in ('prompt_tokens', 'generated_tokens'):
      assert min(row['aux'].pop(name) for row in answers) > 0
  # The last batch of prompts has fewer rows than it had.
  assert_same(answers, rows(old / shard), nearly=mode == 'predict')
  if exact() and mode == 'score':
    assert (new / shard).read_bytes() == (old / shard).read_bytes()
  manifest = f'letters-{mode}.manifest.json'
  assert_same(described(new / manifest), described(old / manifest))


def rows(path: pathlib.Path) -> list[Any]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def described(manifest: pathlib.Path) -> dict[str, Any]:
  """All but what says where and by which version a table was made, and later entries."""
  others = (
    'checkpoint', 'fingerprint', 'config', 'command', 'commit', 'versions', 'baselines',
    'alternatives',
  )  # fmt: skip
  entries = json.loads(manifest.read_text())
  return {name: value for name, value in entries.items() if name not in others}


@pytest.mark.parametrize('mode', REPORTS)
def test_old_tables_give_the_old_report(outcome, mode):
  directory, _, _ = outcome(f'evaluate {mode}')
  new, old = directory / 'again' / mode, WORK / 'report' / mode
  expected = estimates(old / 'summary.csv')
  assert_same(estimates(new / 'summary.csv', [*expected[0]])[: len(expected)], expected)
  if (old / 'curves.json').exists():
    curves_now = json.loads((new / 'curves.json').read_text())
    assert 'large alone' in curves_now.pop('tables')  # which older reports lack
    expected = json.loads((old / 'curves.json').read_text())
    assert_same(common(curves_now, expected), expected)


def common(actual: Any, expected: Any) -> Any:
  """Values without the keys that were added since."""
  if isinstance(expected, Mapping):
    return {name: common(actual[name], value) for name, value in expected.items()}
  if isinstance(expected, list) and expected and isinstance(expected[0], Mapping):
    return [common(*pair) for pair in zip(actual, expected, strict=True)]
  return actual


def estimates(summary: pathlib.Path, columns: Sequence[str] | None = None) -> list[Any]:
  """Rows of texts and of numbers; what is empty is no number. Later versions have more columns."""
  numeric = ('at', 'value', 'low', 'high', 'p')
  with summary.open(newline='') as file:
    return [
      {name: float(row[name] or 'nan') if name in numeric else row[name] for name in columns or row}
      for row in csv.DictReader(file)
    ]


def test_the_artefacts_name_no_folder_of_the_machine_that_made_them():
  folders = {pathlib.Path.home(), pathlib.Path.cwd(), GOLDEN} - {pathlib.Path('/')}
  for path in GOLDEN.rglob('*'):
    if path.is_file() and '__pycache__' not in path.parts:
      content = path.read_bytes()
      assert not [folder for folder in folders if os.fsencode(folder) in content], path
