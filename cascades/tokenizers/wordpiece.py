"""BERT's vocab.txt, one WordPiece a line, of folders without tokenizer.json."""

from __future__ import annotations

from typing import Any

from etils import epath

from cascades.tokenizers import huggingface_folder
from cascades.tokenizers.huggingface import HuggingFace, SpecialIds

FILE = 'vocab.txt'
SPECIAL = {
  'unk_token': '[UNK]',
  'sep_token': '[SEP]',
  'cls_token': '[CLS]',
  'pad_token': '[PAD]',
  'mask_token': '[MASK]',
}


def read(folder: epath.Path) -> HuggingFace:
  """The tokenizer of a model's folder; [CLS] and [SEP] are its beginning and end of sequence.

  Names of special tokens and the treatment of case are those of tokenizer_config.json, or of BERT
  uncased.
  """
  from tokenizers.implementations import BertWordPieceTokenizer

  said = huggingface_folder.read(folder / huggingface_folder.CONFIG)
  pieces = (folder / FILE).read_text().removesuffix('\n').split('\n')
  names: dict[str, Any] = {
    name: huggingface_folder.spelling(said.get(name)) or token for name, token in SPECIAL.items()
  }
  absent = [token for token in names.values() if token not in pieces]
  if absent:
    raise ValueError(
      f'{folder / FILE} lacks {", ".join(absent)}: copy the tokenizer_config.json of the model '
      'beside it, which names its special tokens.'
    )
  tokenizer = BertWordPieceTokenizer(
    {piece: i for i, piece in enumerate(pieces)},
    lowercase=said.get('do_lower_case', True),
    strip_accents=said.get('strip_accents'),
    handle_chinese_chars=said.get('tokenize_chinese_chars', True),
    **names,
  )
  pad, start, end = (pieces.index(names[name]) for name in ('pad_token', 'cls_token', 'sep_token'))
  return HuggingFace(tokenizer.to_str().encode(), SpecialIds(pad, (end,), start), folder / FILE)
