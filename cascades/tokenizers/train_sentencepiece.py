"""Training of a SentencePiece model on the text of a task."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Iterator
from typing import Literal

import sentencepiece as spm
from etils import epath

from cascades.runtime import files
from cascades.tokenizers import conventions, vocabularies

_MAX_CHARACTERS = 1 << 14


def train_sentencepiece(
  texts: Iterable[str],
  output: epath.PathLike,
  *,
  size: int,
  model_type: Literal['unigram', 'bpe'] = 'unigram',
  max_texts: int = 1_000_000,
) -> vocabularies.SentencePiece:
  """Trains a lossless SentencePiece model and writes it to `output`.

  With byte fallback, identity normalization and a piece for the newline `decode(encode(text))`
  equals `text`, except that U+2581, SentencePiece's symbol for a space, becomes a space.

  Args:
    texts: the text; those of more than 16,384 characters are read in pieces.
    output: the file to write.
    size: the number of pieces.
    model_type: SentencePiece's algorithm.
    max_texts: the size of the random sample that is used of more texts; the same in every run.

  Returns:
    The vocabulary in `output`.

  Raises:
    ValueError: the text is too short for that many pieces, or has too many characters.
  """
  model = io.BytesIO()
  try:
    spm.SentencePieceTrainer.train(
      sentence_iterator=iter(_sample(_pieces(texts), max_texts)),
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
      max_sentence_length=1 << 20,  # bytes; the default silently drops texts over 4192
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ValueError(f'SentencePiece cannot make {size} pieces of this text: {error}') from error
  file = epath.Path(output)
  file.parent.mkdir(parents=True, exist_ok=True)
  files.write(file, model.getvalue())
  return vocabularies.sentencepiece(file)


def _pieces(texts: Iterable[str]) -> Iterator[str]:
  """Cuts long texts: training takes the square of the length of a text that repeats itself."""
  for text in texts:
    for begin in range(0, max(len(text), 1), _MAX_CHARACTERS):
      yield text[begin : begin + _MAX_CHARACTERS]


def _sample(texts: Iterable[str], size: int) -> list[str]:
  """Uniform sample of at most `size` texts. SentencePiece's own sampling has no seed."""
  generator = random.Random(0)  # noqa: S311
  sample: list[str] = []
  for count, text in enumerate(texts):
    if count < size:
      sample.append(text)
    elif (index := generator.randint(0, count)) < size:
      sample[index] = text
  return sample
