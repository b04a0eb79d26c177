"""BERT's vocab.txt, with one WordPiece per line, in folders without tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from etils import epath

from cascades.tokenizers import huggingface_folder
from cascades.tokenizers.huggingface import HuggingFace, SpecialIds

VOCAB_TXT = 'vocab.txt'
SPECIAL = {
  'unk_token': '[UNK]',
  'sep_token': '[SEP]',
  'cls_token': '[CLS]',
  'pad_token': '[PAD]',
  'mask_token': '[MASK]',
}


def read_wordpiece(folder: epath.Path) -> HuggingFace:
  """Reads the tokenizer in a folder; [CLS] and [SEP] are its beginning and end of sequence.

  tokenizer_config.json names the special tokens and the treatment of case; the defaults are those
  of BERT uncased.

  Raises:
    ValueError: vocab.txt lacks special tokens.
  """
  from tokenizers.implementations import BertWordPieceTokenizer

  options = huggingface_folder.read(folder / huggingface_folder.CONFIG)
  pieces = (folder / VOCAB_TXT).read_text().removesuffix('\n').split('\n')
  names: dict[str, Any] = {
    name: huggingface_folder.token_text(options.get(name)) or token
    for name, token in SPECIAL.items()
  }
  absent = [token for token in names.values() if token not in pieces]
  if absent:
    raise ValueError(
      f'{folder / VOCAB_TXT} lacks {", ".join(absent)}: copy the tokenizer_config.json of the '
      'model, which names its special tokens, to the same folder.'
    )
  tokenizer = BertWordPieceTokenizer(
    {piece: i for i, piece in enumerate(pieces)},
    lowercase=options.get('do_lower_case', True),
    strip_accents=options.get('strip_accents'),
    handle_chinese_chars=options.get('tokenize_chinese_chars', True),
    **names,
  )
  pad, start, end = (pieces.index(names[name]) for name in ('pad_token', 'cls_token', 'sep_token'))
  return HuggingFace(
    tokenizer.to_str().encode(), SpecialIds(pad, (end,), start), folder / VOCAB_TXT
  )


def train(texts: Iterable[str], size: int) -> list[str]:
  """Trains the pieces of an uncased vocabulary, special tokens first.

  Args:
    texts: what the vocabulary is to encode.
    size: the most pieces.
  """
  from tokenizers.implementations import BertWordPieceTokenizer

  special: list[Any] = [
    SPECIAL[name] for name in ('pad_token', 'unk_token', 'cls_token', 'sep_token')
  ]
  special.append(SPECIAL['mask_token'])
  tokenizer = BertWordPieceTokenizer()
  tokenizer.train_from_iterator(
    iter(texts), vocab_size=size, min_frequency=1, show_progress=False, special_tokens=special
  )
  return [*special, *sorted(tokenizer.get_vocab().keys() - special)]  # its order differs each time
