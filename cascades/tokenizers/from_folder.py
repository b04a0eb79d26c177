"""The tokenizer of a model that others trained, as it lies beside its weights."""

from __future__ import annotations

from typing import Any

import sentencepiece as spm
from etils import epath

from cascades.tokenizers import huggingface_folder, sentencepiece, vocabularies, wordpiece
from cascades.tokenizers.sentencepiece import SentencePiece


def read_vocabulary(folder: epath.PathLike) -> Any:
  """Of a Hugging Face folder; T5's SentencePiece model comes before its translation.

  Raises FileNotFoundError if there is none.
  """
  folder = epath.Path(folder)
  if (folder / 'spiece.model').exists():
    said = huggingface_folder.read(folder / huggingface_folder.CONFIG)
    return vocabularies.sentencepiece(
      folder / 'spiece.model', said.get('extra_ids'), allow_remote=True
    )
  if (folder / 'tokenizer.model').exists() and not (folder / 'tokenizer.json').exists():
    return _sentencepiece(folder / 'tokenizer.model')
  if (folder / wordpiece.FILE).exists() and not (folder / 'tokenizer.json').exists():
    return wordpiece.read(folder)
  return vocabularies.huggingface(folder, allow_remote=True)


def _sentencepiece(file: epath.Path) -> SentencePiece:
  """With the ends that the files beside it name. Raises ValueError if they add tokens to it."""
  own = vocabularies.sentencepiece(file, allow_remote=True)
  added = huggingface_folder.read(file.parent / 'added_tokens.json')
  pieces = spm.SentencePieceProcessor(model_proto=own.model)
  named = lambda token: added.get(token) or sentencepiece.piece_id(pieces, token, file)
  ends = huggingface_folder.special_ids(huggingface_folder.said(file.parent), 'eos', named)
  last = max([0, *added.values(), *ends])
  if last >= len(pieces):
    raise ValueError(
      f'{file} has {len(pieces)} pieces, and the JSON files beside it add tokens up to id {last}: '
      'save both as a tokenizer.json there, with '
      '`transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`.'
    )
  if ends in ([], [own.eos_id]):
    return own
  return vocabularies.sentencepiece(file, eos=pieces.IdToPiece(ends), allow_remote=True)
