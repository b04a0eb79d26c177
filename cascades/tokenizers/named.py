"""A vocabulary by the name or path that a user gives."""

from __future__ import annotations

from etils import epath

from cascades.runtime import files
from cascades.tokenizers import from_folder, vocabularies
from cascades.types import Vocabulary

_FORMS = (
  "'bytes', a SentencePiece model, a tokenizer.json, a GGUF file, or a folder of Hugging Face or a "
  'run directory'
)


def named(name: epath.PathLike, *, allow_remote: bool = False) -> Vocabulary:
  """Reads the vocabulary that a name or a path stands for.

  Args:
    name: 'bytes', or a SentencePiece model, a tokenizer.json, a GGUF file, a model's folder in the
      format of Hugging Face, or a run directory of ours.
    allow_remote: whether the path may be in an object store.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: The file is damaged, or its tokenizer is not supported.
  """
  if name == 'bytes':
    return vocabularies.bytes_vocabulary()
  files.require_local(name, allow_remote)
  path = files.absolute(name)
  if not path.exists():
    raise FileNotFoundError(f'there is no vocabulary {name}: name {_FORMS}.')
  if path.is_dir():
    try:
      return vocabularies.load(path)
    except FileNotFoundError:
      return from_folder.read_vocabulary(path)
  if path.suffix == '.gguf':
    return vocabularies.gguf(path, allow_remote=allow_remote)
  if path.suffix == '.json':
    return vocabularies.huggingface(path, allow_remote=allow_remote)
  return vocabularies.sentencepiece(path, allow_remote=allow_remote)
