"""The tokenizer of a model that others trained, as it lies beside its weights."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from cascades.tasks import vocabularies, wordpieces


def vocabulary(folder: epath.PathLike) -> Any:
  """Of a Hugging Face folder; T5's SentencePiece model comes before its translation.

  Raises FileNotFoundError if there is none.
  """
  folder = epath.Path(folder)
  if (folder / 'spiece.model').exists():
    config = folder / 'tokenizer_config.json'
    said = json.loads(config.read_text()) if config.exists() else {}
    return vocabularies.sentencepiece(
      folder / 'spiece.model', said.get('extra_ids'), allow_remote=True
    )
  if (folder / 'tokenizer.model').exists() and not (folder / 'tokenizer.json').exists():
    return vocabularies.sentencepiece(folder / 'tokenizer.model', allow_remote=True)
  if (folder / wordpieces.FILE).exists() and not (folder / 'tokenizer.json').exists():
    return wordpieces.read(folder)
  return vocabularies.huggingface(folder, allow_remote=True)
