"""The tokenizer in a model folder of Hugging Face, of any type."""

from __future__ import annotations

from etils import epath
from sentencepiece import SentencePieceProcessor

from cascades.tokenizers import huggingface_folder, vocabularies
from cascades.tokenizers.huggingface import TOKENIZER_JSON, HuggingFace
from cascades.tokenizers.sentencepiece import SentencePiece, piece_id
from cascades.tokenizers.wordpiece import VOCAB_TXT, read_wordpiece


def read_vocabulary(folder: epath.PathLike) -> SentencePiece | HuggingFace:
  """Reads the tokenizer beside a model's weights, local or remote.

  T5's spiece.model is preferred to the tokenizer.json that was converted from it; otherwise
  tokenizer.json comes first.

  Raises:
    FileNotFoundError: the folder has no tokenizer.
    ValueError: the tokenizer is damaged, or names no end of sequence.
  """
  folder = epath.Path(folder)
  if (folder / 'spiece.model').exists():
    options = huggingface_folder.read(folder / huggingface_folder.CONFIG)
    return vocabularies.sentencepiece(
      folder / 'spiece.model', options.get('extra_ids'), allow_remote=True
    )
  if not (folder / TOKENIZER_JSON).exists():
    if (folder / 'tokenizer.model').exists():
      return _read_sentencepiece(folder / 'tokenizer.model')
    if (folder / VOCAB_TXT).exists():
      return read_wordpiece(folder)
  return vocabularies.huggingface(folder, allow_remote=True)


def _read_sentencepiece(file: epath.Path) -> SentencePiece:
  """Reads a model and, from the JSON files beside it, the tokens that end a sequence."""
  vocabulary = vocabularies.sentencepiece(file, allow_remote=True)
  added = huggingface_folder.read(file.parent / 'added_tokens.json')
  processor = SentencePieceProcessor(model_proto=vocabulary.model)
  token_id = lambda token: added.get(token) or piece_id(processor, token, file)
  settings = huggingface_folder.read_settings(file.parent)
  ends = huggingface_folder.special_ids(settings, 'eos', token_id)
  last = max([0, *added.values(), *ends])
  if last >= len(processor):
    raise ValueError(
      f'{file} has {len(processor)} pieces, and the JSON files beside it add tokens up to id '
      f'{last}: save both as a tokenizer.json in the same folder, with '
      '`transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`.'
    )
  if ends in ([], [vocabulary.eos_id]):
    return vocabulary
  return vocabularies.sentencepiece(file, eos=processor.IdToPiece(ends), allow_remote=True)
