"""Companion files: tokenizer, chat template and settings beside the weights of a model.

A run directory keeps those of the model that it started from in its folder `huggingface`, so that
an export needs nothing else.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from cascades.checkpoints import store
from cascades.checkpoints.store import CheckpointError
from cascades.interop import hf_config, huggingface
from cascades.runtime import files
from cascades.tokenizers import vocabularies
from cascades.tokenizers.export import special_ids, tokenizer_files
from cascades.tokenizers.from_folder import read_vocabulary
from cascades.types import Vocabulary

log = logging.getLogger(__name__)

FOLDER = 'huggingface'
TOKEN_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id', 'decoder_start_token_id')


class Original(NamedTuple):
  """A folder of Hugging Face that a model came from, and the vocabulary of that model."""

  folder: epath.Path
  vocabulary: Vocabulary


def read(folder: epath.Path) -> dict[str, bytes]:
  """The companion files in a folder, by name."""
  paths = (folder / name for name in huggingface.COMPANIONS)
  return {path.name: path.read_bytes() for path in paths if path.exists()}


def generate(
  description: Mapping[str, Any],
  vocabulary: Vocabulary,
  *,
  options: Mapping[str, Any],
  chat_template: str | None = None,
) -> dict[str, bytes]:
  """Generates companion files and config.json for a model that has none.

  Args:
    description: the model's, as in model.json.
    vocabulary: the model's.
    options: of config.json, not in the description.
    chat_template: the Jinja template of a chat model.

  Returns:
    The files by name; none if transformers has no such model.
  """
  try:
    config = hf_config.configuration(description)
  except CheckpointError:
    return {}
  config = special_ids(vocabulary, config | dict(options))
  return {
    **tokenizer_files(vocabulary, chat_template=chat_template),
    huggingface.CONFIG: json.dumps(config).encode(),
    huggingface.GENERATION: _generation_config(config),
  }


def inherit(source: epath.PathLike | None, directory: epath.Path) -> None:
  """Copies the companion files of the run that a run starts from, for its export."""
  if source is not None and jax.process_index() == 0:
    for file in (store.run_of(source) / FOLDER).glob('*'):
      files.write(directory / FOLDER / file.name, file.read_bytes())


def find_original(path: epath.PathLike) -> Original | None:
  """The folder of Hugging Face that a run directory keeps, or that `path` is."""
  path = files.absolute(path)
  if (path / FOLDER).exists():
    return Original(path / FOLDER, vocabularies.load(path))
  if (path / huggingface.CONFIG).exists():
    return Original(path, read_vocabulary(path))
  return None


def for_export(
  description: Mapping[str, Any], vocabulary: Vocabulary, original: Original | None
) -> tuple[dict[str, Any], dict[str, bytes]]:
  """The content of config.json and the companion files of a trained model.

  Args:
    description: the model's, as in model.json.
    vocabulary: the model's.
    original: the folder that the model came from. Its options that the description does not
      determine, such as the length of the context, and its companion files are copied. Without
      one, both follow from the description and the vocabulary.

  Raises:
    CheckpointError: transformers has no such model, or `original` has another vocabulary.
  """
  if original is None:
    config = special_ids(vocabulary, hf_config.configuration(description))
    companions = tokenizer_files(vocabulary)
  else:
    if original.vocabulary.fingerprint != vocabulary.fingerprint:
      raise CheckpointError(
        f'the tokenizer of {original.folder} is not the vocabulary that the model was trained '
        'with: give the folder that the model comes from.'
      )
    config = dict(hf_config.text_config(huggingface.read_config(original.folder)))
    model_type = config['model_type']
    for option in config.keys() & hf_config.determined_options(model_type):
      del config[option]
    config |= hf_config.configuration(description, model_type)
    companions = read(original.folder)
  return config, {huggingface.GENERATION: _generation_config(config)} | companions


def _generation_config(config: Mapping[str, Any]) -> bytes:
  """generation_config.json with the special ids alone."""
  ids = {name: config[name] for name in TOKEN_IDS if config.get(name) is not None}
  return (json.dumps(ids, indent=2) + '\n').encode()
