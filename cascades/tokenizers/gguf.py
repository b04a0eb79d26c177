"""Tokenizers of GGUF files, converted for the libraries that encode the same way.

Byte-level BPE becomes a `tokenizer.json`, a vocabulary with scores a SentencePiece model. The
pre-tokenization for each `tokenizer.ggml.pre` follows llama.cpp (src/llama-vocab.cpp).
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epath

from cascades.tokenizers.gguf_files import field, read, required
from cascades.tokenizers.huggingface import HuggingFace, SpecialIds
from cascades.tokenizers.sentencepiece import ModelProto, SentencePiece

if TYPE_CHECKING:
  import gguf
  import tokenizers

# Types of tokens, with the numbers of SentencePiece.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_BPE = 2  # SentencePiece's model type
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


class PreTokenization(NamedTuple):
  """Division of a text before byte-level BPE merges it.

  Attributes:
    pattern: regular expression of a piece; None for GPT-2's.
    digits: whether every digit is a piece.
    ignore_merges: whether a piece that is a token is not merged.
    nfc: whether the text is normalized to NFC.
    adds_bos: whether a text begins with a token, for files that do not say.
  """

  pattern: str | None = None
  digits: bool = False
  ignore_merges: bool = False
  nfc: bool = False
  adds_bos: bool = False


_LLAMA_BPE = PreTokenization(_LLAMA3, ignore_merges=True, adds_bos=True)
_QWEN = PreTokenization(_LLAMA3.replace('{1,3}', ''))
PRE_TOKENIZATIONS = {
  'gpt-2': PreTokenization(),
  'phi-2': PreTokenization(),
  'smollm': PreTokenization(digits=True),
  'llama-bpe': _LLAMA_BPE,
  'llama-v3': _LLAMA_BPE,
  'llama3': _LLAMA_BPE,
  'qwen2': _QWEN._replace(nfc=True),
  'deepseek-r1-qwen': _QWEN,
}


class TokenizerFields(NamedTuple):
  """The fields of a file about its tokenizer."""

  tokens: list[str]
  types: list[int]
  pad: int | None
  eos: tuple[int, ...]
  bos: int | None
  unk: int | None
  adds_bos: bool | None

  def special_ids(self, *, adds_bos: bool) -> SpecialIds:
    """The special ids; `adds_bos` is the default of the tokenizer."""
    adds = adds_bos if self.adds_bos is None else self.adds_bos
    pad = self.eos[0] if self.pad is None else self.pad
    return SpecialIds(pad, self.eos, self.bos if adds else None)


def read_gguf(path: epath.Path) -> SentencePiece | HuggingFace:
  """Reads the vocabulary of a GGUF file.

  Raises:
    ValueError: the file is damaged, or its tokenizer is not supported.
  """
  reader = read(path)
  try:
    return _vocabulary(reader, path)
  except (ValueError, ImportError):
    raise
  except Exception as error:  # `tokenizers` raises bare Exceptions
    raise ValueError(f'{path} has a damaged tokenizer: {error}.') from error


def _vocabulary(reader: gguf.GGUFReader, path: epath.Path) -> SentencePiece | HuggingFace:
  model = required(reader, 'tokenizer.ggml.model')
  if model == 'gpt2':
    return _byte_level(reader, path)
  if model == 'llama':
    return _sentencepiece(reader, path)
  raise ValueError(
    f'{path} has a tokenizer of type {model!r}; supported are gpt2 (byte-level BPE) and llama (BPE '
    'of SentencePiece). Use the tokenizer.json of the original model.'
  )


def _fields(reader: gguf.GGUFReader, path: epath.Path) -> TokenizerFields:
  option = lambda name: field(reader, f'tokenizer.ggml.{name}')
  tokens, types = (required(reader, f'tokenizer.ggml.{name}') for name in ('tokens', 'token_type'))
  ends = [option(f'{name}_token_id') for name in ('eos', 'eot', 'eom')]
  if ends[0] is None:
    raise ValueError('The GGUF file names no end of sequence (tokenizer.ggml.eos_token_id).')
  _check(tokens, types, path)
  for name in ('eos', 'eot', 'eom', 'bos', 'padding', 'unknown'):
    index = option(f'{name}_token_id')
    if index is not None and not 0 <= index < len(tokens):
      raise ValueError(
        f'{path} has {len(tokens)} tokens, and tokenizer.ggml.{name}_token_id is {index}.'
      )
  return TokenizerFields(
    tokens=tokens,
    types=types,
    pad=option('padding_token_id'),
    eos=tuple(dict.fromkeys(end for end in ends if end is not None)),
    bos=option('bos_token_id'),
    unk=option('unknown_token_id'),
    adds_bos=option('add_bos_token'),
  )


def _check(tokens: list[str], types: list[int], path: epath.Path) -> None:
  if len(types) != len(tokens):
    raise ValueError(f'{path} has {len(tokens)} tokens, and types of {len(types)}.')
  if len({*tokens}) < len(tokens):
    token, count = collections.Counter(tokens).most_common(1)[0]
    raise ValueError(f'{path} has the token {token!r} {count} times: a text would have two ids.')


def _byte_level(reader: gguf.GGUFReader, path: epath.Path) -> HuggingFace:
  from tokenizers import AddedToken, Tokenizer, decoders, models

  fields = _fields(reader, path)
  pre_tokenization = _pre_tokenization(reader, path)
  merges = required(reader, 'tokenizer.ggml.merges')
  unpaired = next((merge for merge in merges if merge.count(' ') != 1), None)
  if unpaired is not None:
    raise ValueError(f'{path} merges {unpaired!r} (tokenizer.ggml.merges), which is no pair.')
  tokenizer = Tokenizer(
    models.BPE(
      {token: i for i, token in enumerate(fields.tokens)},
      [tuple(merge.split(' ')) for merge in merges],
      ignore_merges=pre_tokenization.ignore_merges,
    )
  )
  _set_pre_tokenizer(tokenizer, pre_tokenization)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_tokens(
    [
      AddedToken(token, normalized=False, special=token_type == CONTROL)
      for token, token_type in zip(fields.tokens, fields.types, strict=True)
      if token_type in (CONTROL, USER_DEFINED)
    ]
  )
  ids = fields.special_ids(adds_bos=pre_tokenization.adds_bos)
  return HuggingFace(tokenizer.to_str().encode(), ids, path, tokenizer=tokenizer)


def _pre_tokenization(reader: gguf.GGUFReader, path: epath.Path) -> PreTokenization:
  pre = field(reader, 'tokenizer.ggml.pre')
  if pre in (None, 'default'):
    raise ValueError(
      f'{path} does not say how to split text (tokenizer.ggml.pre is {pre or "missing"}), as files '
      'of before May 2024: other splits give other tokens than the model was trained with. Convert '
      "the model again with today's llama.cpp, or, if you know the split, such as llama-bpe of "
      f'Llama 3, `gguf-new-metadata --pre-tokenizer NAME {path} NEW_FILE`; supported are '
      f'{", ".join(PRE_TOKENIZATIONS)}.'
    )
  if pre not in PRE_TOKENIZATIONS:
    raise ValueError(
      f'{path} splits text as {pre!r} (tokenizer.ggml.pre); supported are '
      f'{", ".join(PRE_TOKENIZATIONS)}. Use the tokenizer.json of the original model.'
    )
  return PRE_TOKENIZATIONS[pre]


def _set_pre_tokenizer(tokenizer: tokenizers.Tokenizer, options: PreTokenization) -> None:
  from tokenizers import Regex, normalizers, pre_tokenizers

  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not options.pattern)
  steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if options.digits else []
  if options.pattern:
    steps.append(pre_tokenizers.Split(Regex(options.pattern), behavior='isolated'))
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level])
  if options.nfc:
    tokenizer.normalizer = normalizers.NFC()


def _sentencepiece(reader: gguf.GGUFReader, path: epath.Path) -> SentencePiece:
  fields = _fields(reader, path)
  flag = lambda name, default: field(reader, f'tokenizer.ggml.{name}', default)
  ids = fields.special_ids(adds_bos=True)
  unk = 0 if fields.unk is None else fields.unk
  scores = required(reader, 'tokenizer.ggml.scores')
  if len(scores) != len(fields.tokens):
    raise ValueError(f'{path} has {len(fields.tokens)} tokens, and scores of {len(scores)}.')
  proto = ModelProto()
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  trainer.model_type = _BPE
  trainer.vocab_size = len(fields.tokens)
  trainer.byte_fallback = BYTE in fields.types
  trainer.unk_id, trainer.unk_piece = unk, fields.tokens[unk]
  named = {'pad': fields.pad, 'eos': ids.eos[0], 'bos': ids.bos}
  for name, i in named.items():
    setattr(trainer, f'{name}_id', -1 if i is None else i)
    setattr(trainer, f'{name}_piece', f'<no {name}>' if i is None else fields.tokens[i])
  normalizer.name = 'identity'
  normalizer.add_dummy_prefix = flag('add_space_prefix', True)
  normalizer.remove_extra_whitespaces = flag('remove_extra_whitespaces', False)
  control = {fields.pad, fields.bos, ids.eos[0]}
  for i, (token, token_type, score) in enumerate(
    zip(fields.tokens, fields.types, scores, strict=True)
  ):
    # llama.cpp writes user-defined tokens with spaces, SentencePiece with its own symbol.
    piece = token.replace(' ', '▁') if token_type == USER_DEFINED else token
    piece_type = _piece_type(i, token_type, unk, control)
    proto.pieces.add(piece=piece, score=score, type=piece_type)
  eos = [fields.tokens[i] for i in ids.eos] if len(ids.eos) > 1 else []
  return SentencePiece(proto.SerializeToString(), path, extra_ids=0, eos=eos)


def _piece_type(i: int, token_type: int, unk: int, control: set[int | None]) -> int:
  if i == unk:
    return UNKNOWN
  if i in control:
    return CONTROL
  # Texts of chats contain tokens such as <start_of_turn>; SentencePiece reads no control tokens.
  return USER_DEFINED if token_type == CONTROL else token_type
