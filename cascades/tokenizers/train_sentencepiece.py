"""Trains a SentencePiece model on a task's own text."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable
from typing import Literal

import sentencepiece as spm
from etils import epath

from cascades.runtime import files
from cascades.tokenizers import conventions, vocabularies


def train_sentencepiece(
  texts: Iterable[str],
  output: epath.PathLike,
  *,
  size: int,
  model_type: Literal['unigram', 'bpe'] = 'unigram',
  max_texts: int = 1_000_000,
) -> vocabularies.SentencePiece:
  """Trains a lossless SentencePiece model of `size` pieces and writes it to `output`.

  Byte fallback, identity normalisation and a piece for the newline make `decode(encode(text))`
  equal `text`, save that U+2581, SentencePiece's own mark of a space, becomes one. Of more than
  `max_texts` texts a random sample is used, the same in every run.
  """
  model = io.BytesIO()
  try:
    spm.SentencePieceTrainer.train(
      sentence_iterator=iter(_sample(texts, max_texts)),
      model_writer=model,
      model_type=model_type,
      vocab_size=size,
      pad_id=conventions.PAD_ID,
      eos_id=conventions.EOS_ID,
      unk_id=conventions.UNK_ID,
      bos_id=-1,
      byte_fallback=True,
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      user_defined_symbols=['\n'],
      shuffle_input_sentence=False,
      max_sentence_length=1 << 20,  # bytes; the default drops texts over 4192 without a word
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ValueError(f'SentencePiece cannot make {size} pieces of this text: {error}') from error
  file = epath.Path(output)
  file.parent.mkdir(parents=True, exist_ok=True)
  files.write(file, model.getvalue())
  return vocabularies.sentencepiece(file)


def _sample(texts: Iterable[str], size: int) -> list[str]:
  """At most `size` texts, each equally likely. SentencePiece's own sample has no seed."""
  generator = random.Random(0)  # noqa: S311
  kept: list[str] = []
  for count, text in enumerate(texts):
    if count < size:
      kept.append(text)
    elif (place := generator.randint(0, count)) < size:
      kept[place] = text
  return kept
