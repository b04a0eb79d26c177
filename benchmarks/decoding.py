"""Decoding and loading speed compared with transformers on the same weights.

    python -m benchmarks.decoding --checkpoint=runs/smollm2 --folder=exported/smollm2

`--checkpoint` is a run directory of a decoder-only model and `--folder` its export
(`python -m cascades.export`). Requires torch and transformers. Both decode greedily to the full
length with a key-value cache, alternate, and are compiled or warmed up before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import bars
from benchmarks.bars import Measured
from cascades import decoding
from cascades.checkpoints import store
from cascades.interop import huggingface
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from cascades.types import Params, Prompt

Decode = Callable[[np.ndarray], np.ndarray]


def ours(checkpoint: str, dtype: str, new_tokens: int) -> Decode:
  directory, step = store.locate(checkpoint)
  description = store.read_description(directory)['model'] | {'dtype': dtype}
  config = configs.from_description(description)
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    graph, abstract = abstract_model(config, dtype=dtype)
    params = store.restore_params(directory, abstract, which=step)

  @jax.jit
  def generate(params: Params, prompt: Prompt) -> jax.Array:
    model = nnx.merge(graph, params)
    return decoding.generate(model, prompt, max_len=new_tokens, eos_id=-1).tokens

  def decode(tokens: np.ndarray) -> np.ndarray:
    length = jnp.full(len(tokens), tokens.shape[1], jnp.int32)
    return np.asarray(generate(params, Prompt(jnp.asarray(tokens), length)))

  return decode


def theirs(folder: str, dtype: str, new_tokens: int) -> Decode:
  import torch
  import transformers

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
  model.eval()

  def decode(tokens: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
      sequences = model.generate(
        torch.tensor(tokens),
        attention_mask=torch.ones(tokens.shape, dtype=torch.long),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
      )
    return sequences[:, tokens.shape[1] :].numpy()

  return decode


MAKERS: dict[str, Callable[[str, str, int], Decode]] = {'cascades': ours, 'transformers': theirs}


def safetensors(folder: str, dtype: str, _: int) -> Params:
  """Read a folder as `python -m cascades.convert` does before it writes."""
  weights = huggingface.open_folder(folder)
  config = configs.from_description(weights.description)
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    _, abstract = abstract_model(config, dtype=dtype)
  return jax.block_until_ready(weights.tensors.load(abstract))


LOADERS: dict[str, Callable[[str, str, int], object]] = {
  **MAKERS, 'cascades, safetensors': safetensors
}  # fmt: skip


def loading(paths: Mapping[str, str], dtype: str) -> Iterator[Measured]:
  """Load each model in a process of its own; imports do not count."""
  for name, path in paths.items():
    command = [sys.executable, '-m', 'benchmarks.decoding', f'--load={name}', f'--dtypes={dtype}']
    command += [f'--checkpoint={path}', f'--folder={path}']
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    yield Measured(f'{name}: loading, {dtype}', measured['seconds'], 's')
    yield Measured(f'{name}: peak memory of loading, {dtype}', measured['mebibytes'], 'MiB')


def load(name: str, path: str, dtype: str) -> None:
  """Print the seconds and the peak memory of loading in this process."""
  if name == 'transformers':
    import torch
    import transformers

    with torch.device('meta'):  # modules that are imported only when a model is built
      config = transformers.AutoConfig.from_pretrained(path)
      transformers.AutoModelForCausalLM.from_config(config)
  jax.devices()
  before = bars.memory()['peak']
  start = time.perf_counter()
  model = LOADERS[name](path, dtype, 1)
  seconds = time.perf_counter() - start
  mebibytes = (bars.memory()['peak'] - before) / 2**20
  del model
  print(json.dumps({'seconds': seconds, 'mebibytes': mebibytes}))


def rates(decode: Decode, tokens: np.ndarray, new_tokens: int) -> float:
  start = time.perf_counter()
  generated = decode(tokens)
  assert generated.shape == (len(tokens), new_tokens), generated.shape
  return generated.size / (time.perf_counter() - start)


def compare(paths: dict[str, str], dtype: str, options: argparse.Namespace) -> list[Measured]:
  decoders = {name: MAKERS[name](path, dtype, options.new_tokens) for name, path in paths.items()}
  measured = []
  for batch in options.batches:
    tokens = np.random.default_rng(0).integers(100, 20_000, (batch, options.prompt))
    first = {name: decode(tokens) for name, decode in decoders.items()}
    same = np.mean(first['cascades'] == first['transformers'])
    runs: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(options.turns):
      for name, decode in decoders.items():
        runs[name].append(rates(decode, tokens, options.new_tokens))
    where = f'batch {batch}, {dtype}'
    middle = {name: median(speeds) for name, speeds in runs.items()}
    ratios = [a / b for a, b in zip(runs['cascades'], runs['transformers'], strict=True)]
    measured += [
      *(Measured(f'{name}, {where}', value, 'tokens/s') for name, value in middle.items()),
      Measured(f'ratio, {where}', median(ratios), 'x', at_least=1.0, note=f'{same:.0%} the same'),
    ]
  return measured


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--checkpoint', required=True, help='a run directory')
  parser.add_argument('--folder', required=True, help='its export')
  parser.add_argument('--dtypes', default='float32,bfloat16')
  parser.add_argument('--batches', type=int, nargs='+', default=[1, 8])
  parser.add_argument('--prompt', type=int, default=64)
  parser.add_argument('--new_tokens', type=int, default=64)
  parser.add_argument('--turns', type=int, default=5)
  parser.add_argument('--load', choices=LOADERS, help=argparse.SUPPRESS)
  parser.add_argument('--output', default=bars.RESULTS / 'decoding.json')
  options = parser.parse_args()
  if options.load:
    load(options.load, options.checkpoint, options.dtypes)
    return
  paths = {'cascades': options.checkpoint, 'transformers': options.folder}
  measured: list[Measured] = []
  for dtype in options.dtypes.split(','):
    measured += loading({**paths, 'cascades, safetensors': options.folder}, dtype)
    measured += compare(paths, dtype, options)
  bars.report('decoding', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
