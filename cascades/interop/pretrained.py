"""Models that others trained: Hugging Face folders, GGUF files, T5X checkpoints, one function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from etils import epath

from cascades.checkpoints.store import CheckpointError
from cascades.interop import companions, gguf, huggingface, t5x
from cascades.interop.formats import Format, recognize
from cascades.interop.tensor_tables import PretrainedTensors, PretrainedWeights
from cascades.models import bert, configs
from cascades.runtime import files
from cascades.tokenizers import gguf_files, vocabularies
from cascades.tokenizers.from_folder import read_vocabulary
from cascades.types import Vocabulary

_OPEN: Mapping[Format, Callable[[epath.PathLike], PretrainedWeights]] = {
  'huggingface': huggingface.open_folder,
  'gguf': gguf.open_file,
  't5x': t5x.open_checkpoint,
}
ConfigT = TypeVar('ConfigT', configs.LanguageModelConfig, bert.BertConfig)


class Pretrained(NamedTuple, Generic[ConfigT]):
  """A model of another program, whose weights are still in its files.

  Attributes:
    config: the model's configuration; `config.build(key)` makes it.
    tensors: its weights; `tensors.load(abstract)` reads them, each device its own shards.
    vocabulary: its tokenizer.
    companions: reads the files beside the weights, by name: config.json, tokenizer, chat template.
  """

  config: ConfigT
  tensors: PretrainedTensors
  vocabulary: Vocabulary
  companions: Callable[[], Mapping[str, bytes]]


def open_pretrained(
  path: epath.PathLike,
  *,
  vocabulary: Vocabulary | None = None,
  model_options: Mapping[str, Any] | None = None,
) -> Pretrained[configs.LanguageModelConfig]:
  """Opens a language model that others trained. Weights are not read before `tensors.load`.

  Example:
    pretrained = open_pretrained('downloads/SmolLM2-135M')
    _, abstract = abstract_model(pretrained.config)
    params = pretrained.tensors.load(abstract)

  Args:
    path: a folder of Hugging Face, a GGUF file, or a checkpoint_N of T5X.
    vocabulary: the tokenizer, for T5X which stores none; other formats bring one.
    model_options: fields of the configuration that the file lacks, or to replace.

  Returns:
    Configuration, weights, vocabulary and companion files.

  Raises:
    CheckpointError: the path is no model of these formats, or one that the models here do not
      compute; the message names the option.
    ValueError: there is no vocabulary, or one larger than the model's embedding table.
  """
  format, path = recognize(path), files.absolute(path)
  weights = _OPEN[format](path)
  if weights.description['family'] in configs.ENCODERS:
    raise CheckpointError(
      f'{path} holds an encoder, which generates no text: `open_encoder` reads it, where texts '
      'become vectors, and it needs no run directory.'
    )
  vocabulary = vocabulary or _read_vocabulary(path, format)
  config = configs.from_description({**weights.description, **(model_options or {})})
  if config.vocab_size < vocabulary.size:
    raise ValueError(
      f'the model of {path} has {config.vocab_size} vocabulary entries and its tokenizer '
      f'{vocabulary.size}: they are not of one model.'
    )
  read = functools.partial(_companions, path, format, configs.describe(config), vocabulary)
  return Pretrained(config, weights.tensors, vocabulary, read)


def open_encoder(folder: epath.PathLike) -> Pretrained[bert.BertConfig]:
  """Opens an encoder of Hugging Face or sentence-transformers, with its pooling.

  Args:
    folder: with config.json, safetensors, a tokenizer and perhaps modules.json.

  Raises:
    CheckpointError: the folder holds no encoder, or one that the models here do not compute.
  """
  folder = files.absolute(folder)
  weights = huggingface.open_folder(folder)
  if weights.description['family'] not in configs.ENCODERS:
    raise CheckpointError(f'{folder} holds a language model: `open_pretrained` reads it.')
  config = configs.encoder(weights.description)
  read = functools.partial(_folder_companions, folder)
  return Pretrained(config, weights.tensors, read_vocabulary(folder), read)


def _read_vocabulary(path: epath.Path, format: Format) -> Vocabulary:
  if format == 't5x':
    raise ValueError(
      f'{path} holds no tokenizer, like all checkpoints of T5X: give the SentencePiece model of '
      'its text, --gin.VOCABULARY=@vocabularies.sentencepiece() '
      '--gin.vocabularies.sentencepiece.path=FILE.'
    )
  if format == 'gguf':
    return vocabularies.gguf(path, allow_remote=True)
  return read_vocabulary(path)


def _companions(
  path: epath.Path, format: Format, description: Mapping[str, Any], vocabulary: Vocabulary
) -> dict[str, bytes]:
  if format == 'huggingface':
    return _folder_companions(path)
  if format == 't5x':
    return companions.generate(description, vocabulary, options={})
  reader = gguf_files.read(path)
  architecture = gguf_files.required(reader, 'general.architecture')
  length = gguf_files.field(reader, f'{architecture}.context_length')
  return companions.generate(
    description,
    vocabulary,
    options={'max_position_embeddings': length},
    chat_template=gguf_files.field(reader, 'tokenizer.chat_template'),
  )


def _folder_companions(folder: epath.Path) -> dict[str, bytes]:
  config = (folder / huggingface.CONFIG).read_bytes()
  return {**companions.read(folder), huggingface.CONFIG: config}
