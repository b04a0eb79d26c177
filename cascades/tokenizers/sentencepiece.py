"""SentencePiece models, https://github.com/google/sentencepiece."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import sentencepiece as spm
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from cascades.tokenizers import conventions
from cascades.tokenizers.conventions import Tokens

ModelProto = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
T5_IDS = (
  conventions.PAD_ID,
  conventions.EOS_ID,
  conventions.UNK_ID,
  -1,
)  # no beginning of sequence


class SentencePiece(conventions.AbstractVocabulary):
  """A trained subword model; `<extra_id_0>` is the last id, `<extra_id_1>` the second to last.

  The model defines its special ids: T5's, Gemma's (padding 0, end 1, beginning 2, unknown 3),
  Llama's (unknown 0, beginning 1, end 2). T5's decoder starts with padding; those of other models
  without a beginning of sequence start with the first token.

  Args:
    model: the serialized model.
    origin: its path, for messages.
    file: the path of a file with the model alone; None if it is inside another file.
    extra_ids: the number of sentinels that follow the model's pieces; None for 100 if the special
      ids are T5's, else 0.
    eos: the pieces that end an answer, for models that do not define them, or that have several.

  Raises:
    ValueError: the model is damaged, lacks a piece in `eos`, or defines no end of sequence.
  """

  def __init__(
    self,
    model: bytes,
    origin: epath.Path,
    *,
    file: epath.Path | None = None,
    extra_ids: int | None = None,
    eos: Sequence[str] = (),
  ) -> None:
    self.model = model
    self.file = file
    processor = _load(model, origin)
    ids = (processor.pad_id(), processor.eos_id(), processor.unk_id(), processor.bos_id())
    self.extra_ids = (100 if ids == T5_IDS else 0) if extra_ids is None else extra_ids
    if self.extra_ids:
      processor = _load(_with_extra_ids(model, self.extra_ids), origin)
    self._processor = processor
    self._eos = tuple(eos)
    self.size = processor.GetPieceSize()
    pad, end, self.unk_id, bos = ids
    self.eos_ids = tuple(piece_id(processor, piece, origin) for piece in eos) or (end,)
    if self.eos_id < 0:
      raise ValueError(
        f'{origin} defines no end of sequence: give one as eos, such as eos=("[SEP]",), or train a '
        'model with `python -m cascades.browse_tasks train_vocabulary`.'
      )
    self.pad_id = self.eos_id if pad < 0 else pad
    self.bos_id = bos if bos >= 0 else self.pad_id if ids == T5_IDS else None

  def describe(self) -> dict[str, Any]:
    content = hashlib.sha256(self.model).hexdigest()
    ends = {'eos': list(self._eos)} if self._eos else {}
    return {'kind': 'sentencepiece', 'extra_ids': self.extra_ids, 'sha256': content, **ends}

  def encode(self, text: str) -> list[int]:
    return self._processor.EncodeAsIds(text)

  def encode_all(self, texts: Sequence[str]) -> list[Tokens]:
    return conventions.to_arrays(self._processor.Encode(list(texts), num_threads=1))

  def _decode(self, ids: list[int]) -> str:
    return self._processor.DecodeIds(ids)

  def _token_bytes(self, token: int) -> bytes:
    if self._processor.IsControl(token):
      return b''
    piece = self._processor.IdToPiece(token)
    if self._processor.IsByte(token):
      return conventions.spelled_byte(piece)
    return piece.replace(conventions.SPACE, ' ').encode()


def _load(model: bytes, origin: epath.Path) -> spm.SentencePieceProcessor:
  processor = spm.SentencePieceProcessor()
  try:
    processor.LoadFromSerializedProto(model)
  except Exception as error:  # protobuf and the C++ library raise their own types
    raise ValueError(
      f'{origin} is not a SentencePiece model. Train one with '
      '`python -m cascades.browse_tasks train_vocabulary`.'
    ) from error
  return processor


def piece_id(processor: spm.SentencePieceProcessor, piece: str, origin: epath.Path) -> int:
  """The id of a piece that ends an answer. Raises ValueError if the model lacks it."""
  index = processor.PieceToId(piece)
  if processor.IdToPiece(index) != piece:
    raise ValueError(f'{origin} has no piece {piece!r}, which should end an answer.')
  return index


def _with_extra_ids(model: bytes, extra_ids: int) -> bytes:
  """The model followed by sentinels in descending order, exactly as SeqIO adds them."""
  proto = ModelProto.FromString(model)
  user_defined = ModelProto.SentencePiece.USER_DEFINED
  for i in reversed(range(extra_ids)):
    proto.pieces.add(piece=f'▁<extra_id_{i}>', score=0.0, type=user_defined)
  return proto.SerializeToString()
