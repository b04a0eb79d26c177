"""The tokenizer inside a GGUF file, rebuilt for the library that encodes as it did.

Byte-level BPE becomes a `tokenizer.json`, a vocabulary with scores a SentencePiece model. Which
text splits belong to which `tokenizer.ggml.pre` is llama.cpp's (src/llama-vocab.cpp).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epath

from cascades.tokenizers import gguf_files
from cascades.tokenizers.huggingface import HuggingFace, SpecialIds
from cascades.tokenizers.sentencepiece import ModelProto, SentencePiece

if TYPE_CHECKING:
  import gguf
  import tokenizers

# Kinds of tokens. SentencePiece numbers them alike.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_BPE = 2  # SentencePiece's number of its model type
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


class Splits(NamedTuple):
  """How a byte-level tokenizer cuts text before it merges."""

  pattern: str | None = None  # none: GPT-2's, after cutting off every digit if `digits`
  digits: bool = False
  whole_words: bool = False  # a word that is a token is not merged to it
  nfc: bool = False
  starts: bool = False  # unless the file says whether it begins with a token


SPLITS = {
  'gpt-2': Splits(),
  'smollm': Splits(digits=True),
  'llama-bpe': Splits(_LLAMA3, whole_words=True, starts=True),
  'qwen2': Splits(_LLAMA3.replace('{1,3}', ''), nfc=True),
}


class Fields(NamedTuple):
  """What a file says of its tokenizer."""

  tokens: list[str]
  kinds: list[int]
  pad: int | None
  eos: tuple[int, ...]
  bos: int | None
  unk: int | None
  adds_bos: bool | None

  def special_ids(self, *, starts: bool) -> SpecialIds:
    adds = starts if self.adds_bos is None else self.adds_bos
    pad = self.eos[0] if self.pad is None else self.pad
    return SpecialIds(pad, self.eos, self.bos if adds else None)


def read(path: epath.Path) -> SentencePiece | HuggingFace:
  """The vocabulary of a GGUF file."""
  reader = gguf_files.read(path)
  model = gguf_files.required(reader, 'tokenizer.ggml.model')
  if model == 'gpt2':
    return _byte_level(reader, path)
  if model == 'llama':
    return _sentencepiece(reader, path)
  raise ValueError(
    f'{path} has a tokenizer of kind {model!r}; only gpt2 (byte-level BPE) and llama (BPE of '
    'SentencePiece) are read. Use the tokenizer.json of the original model.'
  )


def _fields(reader: gguf.GGUFReader) -> Fields:
  said = lambda name: gguf_files.field(reader, f'tokenizer.ggml.{name}')
  names = gguf_files.required(reader, 'tokenizer.ggml.tokens')
  ends = [said(f'{name}_token_id') for name in ('eos', 'eot', 'eom')]
  if ends[0] is None:
    raise ValueError('The GGUF file names no end of sequence (tokenizer.ggml.eos_token_id).')
  return Fields(
    tokens=names,
    kinds=said('token_type') or [NORMAL] * len(names),
    pad=said('padding_token_id'),
    eos=tuple(dict.fromkeys(end for end in ends if end is not None)),
    bos=said('bos_token_id'),
    unk=said('unknown_token_id'),
    adds_bos=said('add_bos_token'),
  )


def _byte_level(reader: gguf.GGUFReader, path: epath.Path) -> HuggingFace:
  from tokenizers import AddedToken, Tokenizer, decoders, models

  fields = _fields(reader)
  pre = gguf_files.field(reader, 'tokenizer.ggml.pre', 'gpt-2')
  if pre not in SPLITS:
    raise ValueError(
      f'{path} splits text as {pre!r} (tokenizer.ggml.pre); known are {", ".join(SPLITS)}. Use the '
      'tokenizer.json of the original model.'
    )
  splits = SPLITS[pre]
  merges = gguf_files.required(reader, 'tokenizer.ggml.merges')
  tokenizer = Tokenizer(
    models.BPE(
      {token: i for i, token in enumerate(fields.tokens)},
      [tuple(merge.split(' ')) for merge in merges],
      ignore_merges=splits.whole_words,
    )
  )
  _cut(tokenizer, splits)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_tokens(
    [
      AddedToken(token, normalized=False, special=kind == CONTROL)
      for token, kind in zip(fields.tokens, fields.kinds, strict=True)
      if kind in (CONTROL, USER_DEFINED)
    ]
  )
  ids = fields.special_ids(starts=splits.starts)
  return HuggingFace(tokenizer.to_str().encode(), ids, path, tokenizer=tokenizer)


def _cut(tokenizer: tokenizers.Tokenizer, splits: Splits) -> None:
  from tokenizers import Regex, normalizers, pre_tokenizers

  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splits.pattern)
  cuts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if splits.digits else []
  if splits.pattern:
    cuts.append(pre_tokenizers.Split(Regex(splits.pattern), behavior='isolated'))
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
  if splits.nfc:
    tokenizer.normalizer = normalizers.NFC()


def _sentencepiece(reader: gguf.GGUFReader, path: epath.Path) -> SentencePiece:
  fields = _fields(reader)
  flag = lambda name, default: gguf_files.field(reader, f'tokenizer.ggml.{name}', default)
  ids = fields.special_ids(starts=True)
  unk = 0 if fields.unk is None else fields.unk
  scores = gguf_files.required(reader, 'tokenizer.ggml.scores')
  proto = ModelProto()
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  trainer.model_type = _BPE
  trainer.vocab_size = len(fields.tokens)
  trainer.byte_fallback = BYTE in fields.kinds
  trainer.unk_id, trainer.unk_piece = unk, fields.tokens[unk]
  named = {'pad': fields.pad, 'eos': ids.eos[0], 'bos': ids.bos}
  for name, i in named.items():
    setattr(trainer, f'{name}_id', -1 if i is None else i)
    setattr(trainer, f'{name}_piece', f'<no {name}>' if i is None else fields.tokens[i])
  normalizer.name = 'identity'
  normalizer.add_dummy_prefix = flag('add_space_prefix', True)
  normalizer.remove_extra_whitespaces = flag('remove_extra_whitespaces', False)
  kept = {fields.pad, fields.bos, ids.eos[0]}
  for i, (token, kind, score) in enumerate(zip(fields.tokens, fields.kinds, scores, strict=True)):
    proto.pieces.add(piece=_piece(token, kind), score=score, type=_kind(i, kind, unk, kept))
  eos = [fields.tokens[i] for i in ids.eos] if len(ids.eos) > 1 else []
  return SentencePiece(proto.SerializeToString(), path, extra_ids=0, eos=eos)


def _piece(token: str, kind: int) -> str:
  """SentencePiece's spelling: llama.cpp writes what users define with real spaces."""
  return token.replace(' ', '▁') if kind == USER_DEFINED else token


def _kind(i: int, kind: int, unk: int, kept: set[int | None]) -> int:
  if i == unk:
    return UNKNOWN
  if i in kept:
    return CONTROL
  # Such as <start_of_turn>, which chats spell out: SentencePiece reads no control token in a text.
  return USER_DEFINED if kind == CONTROL else kind
