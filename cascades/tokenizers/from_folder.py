"""The tokenizer in a model folder of Hugging Face, of any type."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from sentencepiece import SentencePieceProcessor

from cascades.tokenizers import added_tokens, huggingface_folder, vocabularies
from cascades.tokenizers.added_tokens import DeclaredToken
from cascades.tokenizers.huggingface import TOKENIZER_JSON, HuggingFace
from cascades.tokenizers.sentencepiece import ModelProto, SentencePiece, piece_id
from cascades.tokenizers.wordpiece import VOCAB_TXT, read_wordpiece

SPIECE, MODEL = 'spiece.model', 'tokenizer.model'
_AS_JSON = (
  'save both as a tokenizer.json in the same folder, with '
  '`transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`.'
)
_USER_DEFINED = ModelProto.SentencePiece.USER_DEFINED


def read_vocabulary(folder: epath.PathLike) -> SentencePiece | HuggingFace:
  """Reads the tokenizer beside a model's weights, local or remote.

  T5's spiece.model is preferred to the tokenizer.json that was converted from it, unless tokens
  were added; otherwise tokenizer.json comes first.

  Raises:
    FileNotFoundError: the folder has no tokenizer.
    ValueError: the tokenizer is damaged, names no end of sequence, or has tokens added that a
      SentencePiece model does not hold.
  """
  folder = epath.Path(folder)
  has_json = (folder / TOKENIZER_JSON).exists()
  if (folder / SPIECE).exists():
    vocabulary = _read_t5(folder)
    added = next(_absent(vocabulary, folder), None)
    if added is None:
      return vocabulary
    if not has_json:
      raise _added_error(folder / SPIECE, vocabulary, added)
  elif not has_json:
    if (folder / MODEL).exists():
      return _read_sentencepiece(folder / MODEL)
    if (folder / VOCAB_TXT).exists():
      return read_wordpiece(folder)
  return vocabularies.huggingface(folder, allow_remote=True)


def _read_t5(folder: epath.Path) -> SentencePiece:
  options = huggingface_folder.read_settings(folder)['tokenizer_config']
  return vocabularies.sentencepiece(folder / SPIECE, options.get('extra_ids'), allow_remote=True)


def _read_sentencepiece(file: epath.Path) -> SentencePiece:
  """Reads a model and, from the JSON files beside it, the tokens that end a sequence."""
  vocabulary = vocabularies.sentencepiece(file, allow_remote=True)
  for added in _absent(vocabulary, file.parent):
    raise _added_error(file, vocabulary, added)
  processor = SentencePieceProcessor(model_proto=vocabulary.model)
  settings = huggingface_folder.read_settings(file.parent)
  _check_options(settings['tokenizer_config'], vocabulary, file)
  ends = huggingface_folder.special_ids(
    settings, 'eos', lambda token: piece_id(processor, token, file)
  )
  last = max([0, *ends])
  if last >= len(processor):
    raise _added_error(file, vocabulary, DeclaredToken('eos_token_id', last, True, {}))
  if ends in ([], [vocabulary.eos_id]):
    return vocabulary
  return vocabularies.sentencepiece(file, eos=processor.IdToPiece(ends), allow_remote=True)


def _absent(vocabulary: SentencePiece, folder: epath.Path) -> Iterator[DeclaredToken]:
  """The tokens of the files beside a SentencePiece model that it reads otherwise, or not at all."""
  settings = huggingface_folder.read_settings(folder)
  proto = ModelProto.FromString(vocabulary.model)
  pieces = {piece.piece: i for i, piece in enumerate(proto.pieces)}
  special = (vocabulary.bos_id, vocabulary.pad_id, vocabulary.unk_id, *vocabulary.eos_ids)

  def holds(token: DeclaredToken) -> bool:
    sentinel = re.fullmatch(r'<extra_id_(\d{1,6})>', token.content)
    if sentinel and int(sentinel[1]) < vocabulary.extra_ids:
      return token.id in (None, vocabulary.size - 1 - int(sentinel[1]))
    index = pieces.get(token.content)
    if index is None or token.id not in (None, index):
      return False
    # A control piece is read in no text, and a normal one may be merged with its neighbors.
    strips = any(token.flags.get(flag) for flag in ('lstrip', 'rstrip', 'single_word'))
    user_defined = proto.pieces[index].type == _USER_DEFINED
    return token.id is None or index in special or (user_defined and not strips)

  tokens = (*added_tokens.declared(settings), *added_tokens.listed(folder / TOKENIZER_JSON))
  return (token for token in tokens if not holds(token))


def _added_error(file: epath.Path, vocabulary: SentencePiece, token: DeclaredToken) -> ValueError:
  index = 'the next id' if token.id is None else f'id {token.id}'
  return ValueError(
    f'{file} has {vocabulary.size - vocabulary.extra_ids} pieces, and the JSON files beside it add '
    f'{token.content!r} with {index}, which it does not hold as such: {_AS_JSON}'
  )


def _check_options(options: Mapping[str, Any], vocabulary: SentencePiece, file: epath.Path) -> None:
  """Raises ValueError for options of tokenizer_config.json that a model contradicts."""
  prefix = ModelProto.FromString(vocabulary.model).normalizer_spec.add_dummy_prefix
  of_model = {'add_prefix_space': prefix, 'add_bos_token': vocabulary.bos_id is not None}
  for option, value in of_model.items():
    if value and options.get(option) is False:
      raise ValueError(
        f'{file.parent / huggingface_folder.CONFIG} sets {option} to false, and {file.name} does '
        f'otherwise: {_AS_JSON}'
      )
