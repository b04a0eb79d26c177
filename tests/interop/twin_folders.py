"""Hugging Face folders of the tiny twins, without Hugging Face: its names, its configurations."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from cascades.interop import huggingface
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from cascades.types import Batch, Params
from tests.golden import hf_weights, twins


def config(name: str) -> dict[str, Any]:
  """config.json as transformers writes it for the twin."""
  return json.loads((twins.FOLDER / f'{name}.json').read_text())


def tensors(name: str) -> dict[str, np.ndarray]:
  return hf_weights.weights(twins.CONFIGS[name])


def write(
  folder: pathlib.Path, config: dict[str, Any], *shards: dict[str, np.ndarray]
) -> pathlib.Path:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config))
  if len(shards) == 1:
    save_file(shards[0], folder / 'model.safetensors', {'format': 'pt'})
    return folder
  index = {}
  for number, shard in enumerate(shards, 1):
    file = f'model-{number:05}-of-{len(shards):05}.safetensors'
    save_file(shard, folder / file, {'format': 'pt'})
    index |= dict.fromkeys(shard, file)
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': index}))
  return folder


def twin(folder: pathlib.Path, name: str) -> pathlib.Path:
  return write(folder, config(name), tensors(name))


def load(
  folder: pathlib.Path, *, mesh: Any = None, dtype: str = 'float32', **options: int
) -> tuple[Any, Params]:
  """Configuration and parameters of what the folder holds; on one device unless told otherwise."""
  actual = huggingface.open_folder(folder)
  config = configs.from_description(actual.description)
  mesh = mesh or partitioning.make_mesh(devices=jax.devices()[:1])
  abstract = _abstract(config, mesh, dtype)
  return config, actual.tensors.load(abstract, **options)


@functools.cache
def _abstract(config: Any, mesh: Any, dtype: str) -> Params:
  with partitioning.use(mesh):
    return abstract_model(config, dtype=dtype)[1]


def logits(config: Any, params: Params, name: str) -> np.ndarray:
  """Logits of the loaded model for the twin's golden inputs."""
  golden = twins.load(name)
  graph, _ = nnx.split(nnx.eval_shape(lambda: config.build(jax.random.key(0))))
  batch = Batch(golden['inputs'], None, None, golden.get('encoder'))

  @jax.jit
  def answer(params: Params, batch: Batch) -> jax.Array:
    model = nnx.merge(graph, params)
    return model.readout(model.hidden(batch))

  return np.asarray(answer(params, batch))


def flat(params: Params) -> dict[str, np.ndarray]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
