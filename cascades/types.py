"""The few types that everything shares. Imports nothing of ours.

Axes: B batch, T target, S source, V vocabulary, D width, N examples, K statistics, M thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import (
  TYPE_CHECKING,
  Any,
  ClassVar,
  Literal,
  NamedTuple,
  Protocol,
  Self,
  TypeAlias,
  TypeVar,
)

import numpy as np
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:  # so that evaluation, which is NumPy alone, starts without JAX
  from jax import Array

Architecture: TypeAlias = Literal['encoder_decoder', 'decoder_only']
Params: TypeAlias = Any  # a nested dict of arrays, as nnx.to_pure_dict gives it


class Batch(NamedTuple):
  """Teacher-forced examples. The prompt enters by one of two doors: `encoder`, or left of the
  targets in `inputs`.

  `segments` number the examples packed into one row, 1, 2, ...; 0 is padding. `positions` restart
  at 0 with each segment. None means one example a row, padded on the right.
  """

  inputs: Int[Array, 'B T']  # targets shifted right by one
  targets: Int[Array, 'B T']
  weights: Float[Array, 'B T']  # 1 on target tokens (end of sequence included), 0 elsewhere
  encoder: Int[Array, 'B S'] | None = None
  segments: Int[Array, 'B T'] | None = None
  positions: Int[Array, 'B T'] | None = None
  encoder_segments: Int[Array, 'B S'] | None = None
  encoder_positions: Int[Array, 'B S'] | None = None
  teachers: tuple[Any, ...] = ()  # `teachers.Teacher`s of arrays [B, T, ...], of cached answers
  loss_weights: Float[Array, 'B T'] | None = None  # of tokens in the loss; None takes `weights`


class Prompt(NamedTuple):
  """Prompts padded on the right, for the encoder or for the decoder's left context."""

  tokens: Int[Array, 'B S']
  length: Int[Array, 'B']


class Cache(Protocol):
  """State of decoding, one row per prompt. Implementations are NamedTuples of arrays.

  `length` alone decides which entries are read: `cache._replace(length=shorter)` rejects tokens.
  """

  @property
  def length(self) -> Int[Array, 'B']:
    """Number of tokens that the decoder has read in each row."""
    ...

  def insert(self, row: int | Array, other: Self, other_row: int | Array = 0) -> Self:
    """Replace a row by a row of another cache, so that a new prompt joins a running batch.

    The other rows keep their values, and the new row decodes as it would alone.

    Args:
      row: Index of the row to replace; may be traced.
      other: Cache of the same model, with at most the capacity of this one (prompt and answer).
      other_row: Index of the row of `other` to insert; may be traced.

    Raises:
      ValueError: The capacity of `other` is larger.
    """
    ...


CacheT = TypeVar('CacheT', bound=Cache)


class LanguageModel(Protocol[CacheT]):
  """Interface of T5, decoder-only models and test dummies to training, decoding and scoring."""

  def hidden(self, batch: Batch, key: Array | None = None) -> Float[Array, 'B T D']:
    """Final hidden states under teacher forcing, aligned with `batch.targets`.

    A `key` switches dropout on; without one the model is deterministic.
    """
    ...

  @property
  def table(self) -> Any:
    """The table [V, D] that `readout` multiplies with: an array, or quantized values and scales."""
    ...

  def readout(self, hidden: Float[Array, '*n D'], table: Any = None) -> Float[Array, '*n V']:
    """Logits in float32, also with another `table` in the place of the model's own."""
    ...

  def prefill(self, prompt: Prompt, max_len: int) -> tuple[Float[Array, 'B V'], CacheT]:
    """Read the prompt, with room for `max_len` generated tokens; logits of the first one."""
    ...

  def extend(
    self, tokens: Int[Array, 'B L'], cache: CacheT
  ) -> tuple[Float[Array, 'B L V'], CacheT]:
    """Append `tokens`; logits of the token after each of them.

    A cache may have more rows than there are tokens; those behind the first B stay as they are.
    What is masked follows from the cache's `length` alone: rejecting tokens is shortening it.
    """
    ...


class ModelConfig(Protocol):
  """A frozen description that builds a model."""

  architecture: ClassVar[Architecture]

  @property
  def vocab_size(self) -> int: ...

  def build(self, key: Array) -> LanguageModel[Any]: ...


class Vocabulary(Protocol):
  """Text to token ids and back, without TensorFlow."""

  @property
  def size(self) -> int: ...

  @property
  def pad_id(self) -> int: ...

  @property
  def eos_id(self) -> int: ...

  @property
  def eos_ids(self) -> Sequence[int]:
    """All that end an answer, `eos_id` first: chat models have several."""
    ...

  @property
  def bos_id(self) -> int | None:
    """The decoder's first input; None if the model reads the prompt without one."""
    ...

  @property
  def fingerprint(self) -> str:
    """Equal for two vocabularies only if they encode every text alike."""
    ...

  def describe(self) -> dict[str, Any]:
    """JSON from which the vocabulary is rebuilt beside a checkpoint."""
    ...

  def encode(self, text: str) -> list[int]:
    """Ids without beginning or end of sequence."""
    ...

  def encode_all(self, texts: Sequence[str]) -> list[Int[np.ndarray, 'n']]:
    """The same for many texts, faster."""
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """Text up to the first end of sequence; padding is dropped."""
    ...

  def token_bytes(self, token: int) -> bytes:
    """Bytes that a token stands for, alone: no UTF-8 where a character takes several tokens."""
    ...


class Generation(NamedTuple):
  """Decoded answers with their confidence. `mask` is True up to and including end of sequence."""

  tokens: Int[Array, 'B T']
  logprobs: Float[Array, 'B T']  # of the untempered softmax
  mask: Bool[Array, 'B T']
  alternatives: Float[Array, 'B T A'] | None = None  # log-probabilities, most likely token first


class Metric(NamedTuple):
  """Quality as additive statistics per example, and what finishes their sum.

  `statistics(targets, prediction)` gives K numbers; `finalize` maps sums of them, and N itself is
  never needed: a metric that divides by the number of examples carries a 1 among its statistics.
  """

  name: str
  statistics: Callable[[Sequence[str], str], Float[np.ndarray, 'K']]
  finalize: Callable[[Float[np.ndarray, '*M K']], Float[np.ndarray, '*M']]
  higher_is_better: bool = True
  scale: float = 1.0  # the best, or worst, that it can be: 100 for BLEU, 1 for shares


POOLED = 'all tasks'  # task of a table of several tasks, whose ids are task/id


class Predictions(NamedTuple):
  """One table: what one model answered to one task's split, as columns of N rows.

  Log-probabilities of the L tokens of all answers stand one after another: padded, one long answer
  would cost every row its length.
  """

  task: str
  split: str
  ids: Sequence[str]
  inputs: Sequence[str]
  targets: Sequence[Sequence[str]]
  predictions: Sequence[str]
  token_logprobs: Float[np.ndarray, 'L']
  lengths: Int[np.ndarray, 'N']  # tokens of each answer
  statistics: Mapping[str, Float[np.ndarray, 'N K']]  # by metric name
  manifest: Mapping[str, Any]
  groups: Sequence[str] = ()  # of rows that are right only together; none if empty
  slices: Sequence[str] = ()  # of the population that each row belongs to; none if empty
  columns: Mapping[str, Float[np.ndarray, 'N']] = MappingProxyType({})  # see COLUMNS; nan: unknown
  alternatives: Float[np.ndarray, 'L A'] | None = None  # most likely first, padded by -inf
  embeddings: Mapping[str, Float[np.ndarray, 'N D']] = MappingProxyType({})  # by sidecar
  by_token: Mapping[str, Float[np.ndarray, 'L']] = MappingProxyType({})  # see TOKEN_COLUMNS

  def column(self, name: str) -> Float[np.ndarray, 'N']:
    """Numbers of all rows.

    Raises:
      ValueError: The table has no such column, or rows without it.
    """
    values = self.columns.get(name, np.full(len(self.ids), np.nan))
    if missing := int(np.isnan(values).sum()):
      raise ValueError(
        f'{missing} of {len(self.ids)} rows of task {self.task!r} have no {name} '
        f'({COLUMNS[name]}), which a score or a cost asks for: store it with the table, or leave '
        'out what asks for it.'
      )
    return values

  @property
  def logprobs(self) -> Float[np.ndarray, 'N T']:
    """Log-probabilities, padded by zeros to the longest answer."""
    return self.padded()[0]

  @property
  def mask(self) -> Bool[np.ndarray, 'N T']:
    """True on the tokens of each answer, False on padding."""
    return self.padded()[1]

  def padded(
    self, rows: Int[np.ndarray, 'n'] | slice = slice(None)
  ) -> tuple[Float[np.ndarray, 'n T'], Bool[np.ndarray, 'n T']]:
    """Log-probabilities and mask of some rows, padded to the longest answer among them."""
    lengths = self.lengths[rows]
    mask = np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]
    logprobs = np.zeros(mask.shape)
    logprobs[mask] = self.tokens(rows)
    return logprobs, mask

  def tokens(self, rows: Int[np.ndarray, 'n'] | slice) -> Float[np.ndarray, 'l']:
    """Log-probabilities of the tokens of some rows, one after another in the order of the rows."""
    return self.token_logprobs[self.positions(rows)]

  def positions(self, rows: Int[np.ndarray, 'n'] | slice) -> Int[np.ndarray, 'l']:
    """Positions of the tokens of some rows among all, in the order of the rows."""
    lengths, starts = self.lengths[rows], (np.cumsum(self.lengths) - self.lengths)[rows]
    shift = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return shift + np.arange(len(shift))


# Optional numbers of each row.
COLUMNS: Mapping[str, str] = MappingProxyType({
  'confidence': 'in the answer, from 0 to 1, given with it',
  'prompt_tokens': 'tokens read',
  'generated_tokens': 'tokens written, those that are not shown included',
  'seconds': 'time to the end of the answer',
  'dollars': 'price paid for the answer',
  'accepted': 'drafts of a small model that are part of the answer',
  'rejected': 'drafts of a small model that were replaced',
  'small_calls': 'steps of the small model, the prompt included',
  'large_calls': 'calls of the large model, the prompt included',
})  # fmt: skip

# Optional numbers of each token; nan: unknown.
TOKEN_COLUMNS: Mapping[str, str] = MappingProxyType({
  'small_logprobs': 'log-probability under the small model, where it has read the tokens before',
  'drafted': '1 if the small model wrote the token, else 0',
})  # fmt: skip


class Curve(NamedTuple):
  """Quality against cost, one point a reachable threshold, from no deferral to all."""

  threshold: Float[np.ndarray, 'M']
  deferral_rate: Float[np.ndarray, 'M']
  quality: Float[np.ndarray, 'M']
  cost: Float[np.ndarray, 'M']


DeferralRule: TypeAlias = Callable[
  [Float[np.ndarray, 'N T'], Bool[np.ndarray, 'N T']], Float[np.ndarray, 'N']
]
Score: TypeAlias = Callable[[Predictions], Float[np.ndarray, 'N']]


class Decider(NamedTuple):
  """A score, what it reads and what it costs.

  Attributes:
    name: Name in reports.
    score: One number per row; the highest defers first.
    reads: Names of what it reads of a table: 'inputs', 'token_logprobs', 'alternatives', 'two
      alternatives', a column of COLUMNS, or 'embeddings/NAME'.
    flops: FLOPs of deciding on one query.
  """

  name: str
  score: Score
  reads: Collection[str]
  flops: float = 0.0

  @property
  def before_answer(self) -> bool:
    """True if it reads only the prompt, so that it can run before any model answers."""
    return set(self.reads) <= {'inputs', 'embeddings/prompt'}
