import collections
import hashlib
import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from cascades.tasks import corruption

LENGTHS = [(64, 70, 14), (128, 141, 29), (256, 284, 58), (512, 568, 114), (1024, 1137, 229)]
VOCABULARY = {'vocab_size': 32_100, 'extra_ids': 100}

seeds = st.integers(0, 2**63)
numbers = st.integers(0, 2**40)
# (kept, dropped) lengths of alternating spans
alternating = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=30)


def array(*tokens):
  return np.array(tokens, np.int32)


def mask_of(spans):
  return np.array([noisy for kept, dropped in spans for noisy in [False] * kept + [True] * dropped])


def runs(mask):
  """Lengths of the runs of equal values."""
  return [len(list(run)) for _, run in itertools.groupby(mask.tolist())]


def with_sentinels_slowly(tokens, drop, vocab_size):
  """T5's one rule for both halves: each run of dropped tokens becomes the next sentinel."""
  found, sentinel, inside = [], vocab_size, False
  for token, dropped in zip(tokens, drop, strict=True):
    if dropped and not inside:
      sentinel -= 1
      found.append(sentinel)
    elif not dropped:
      found.append(token)
    inside = dropped
  return found


def segments_slowly(items, draws):
  """Floyd's sampling of len(draws) places between the items, then the distances."""
  chosen = []
  count = len(draws)
  for i in range(count):
    last = items - count + i
    place = draws[i] % last + 1
    chosen.append(last if place in chosen else place)
  places = [0, *sorted(chosen), items]
  return [places[i + 1] - places[i] for i in range(count + 1)]


def longest_chunk_slowly(inputs_length, density, mean_span):
  """The definition: of all lengths, the largest whose inputs fit."""
  fitting = []
  for length in range(2, 4 * inputs_length):
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(noise / mean_span), 1)
    if length - noise + spans + 1 <= inputs_length:
      fitting.append((length, noise + spans + 1))
  return fitting[-1]


@pytest.mark.parametrize(('inputs', 'chunk', 'targets'), LENGTHS)
def test_chunk_lengths_are_those_of_t5(inputs, chunk, targets):
  assert corruption.chunk_length(inputs) == (chunk, targets)


@given(st.integers(3, 300), st.floats(0.05, 0.5), st.floats(2, 10))
def test_the_chunk_is_the_longest_that_fits(inputs_length, density, mean_span):
  found = corruption.chunk_length(inputs_length, density=density, mean_span=mean_span)
  assert found == longest_chunk_slowly(inputs_length, density, mean_span)


@pytest.mark.parametrize(
  ('length', 'noise', 'spans'),
  [
    (568, 85, 28),  # 85.2, 28.3
    (2, 1, 1),  # 0.3 and 0.3, but at least one
    (10, 2, 1),  # 1.5 rounds to even
    (190, 28, 9),  # 28.5 rounds to even, which float32 misses
    (70, 10, 3),  # 10.5, 3.3
  ],
)
def test_counts_of_noise_worked_by_hand(length, noise, spans):
  assert corruption.noise_counts(length) == (noise, spans)


def test_a_dense_chunk_keeps_one_token():
  assert corruption.noise_counts(5, density=0.95, mean_span=4) == (4, 1)


@pytest.mark.parametrize(
  ('length', 'density', 'mean_span'), [(1, 0.15, 3), (9, 0.0, 3), (9, 1.0, 3), (9, 0.15, 0.5)]
)
def test_noise_that_cannot_be_is_refused(length, density, mean_span):
  with pytest.raises(ValueError, match=rf'density {density} in spans of {mean_span}.*{length} tok'):
    corruption.noise_counts(length, density=density, mean_span=mean_span)


def test_more_spans_than_the_rest_can_keep_apart_are_refused():
  with pytest.raises(ValueError, match='8 spans of noise cannot be kept apart by the 2 other'):
    corruption.noise_counts(10, density=0.8, mean_span=1)


@given(st.integers(2, 1200), st.floats(0.01, 0.45), st.floats(1.25, 10), seeds, numbers)
@example(20, 0.4, 1.0, 0, 0)  # as many spans as noise tokens
@example(4, 0.5, 1.0, 0, 0)  # and as many other tokens
def test_masks_alternate_with_exactly_the_planned_counts(length, density, mean_span, seed, number):
  noise, spans = corruption.noise_counts(length, density=density, mean_span=mean_span)
  mask = corruption.random_spans(
    length, density=density, mean_span=mean_span, seed=seed, number=number
  )
  assert mask.dtype == bool
  assert len(mask) == length
  assert mask.sum() == noise
  assert not mask[0]
  assert len(runs(mask)) == 2 * spans


@given(st.integers(2, 300), seeds, numbers)
def test_a_mask_is_that_of_the_slow_oracle(length, seed, number):
  noise, spans = corruption.noise_counts(length)
  stream = hashlib.shake_128(f'{seed} {number}'.encode()).digest(16 * spans)
  draws = [int.from_bytes(stream[i : i + 8], 'little') for i in range(0, 16 * (spans - 1), 8)]
  kept = segments_slowly(length - noise, draws[0::2])
  dropped = segments_slowly(noise, draws[1::2])
  expected = mask_of(zip(kept, dropped, strict=True))
  found = corruption.random_spans(length, seed=seed, number=number)
  assert found.tolist() == expected.tolist()


def test_a_mask_is_the_same_in_every_run_and_version():
  found = corruption.random_spans(70, seed=0, number=0)
  assert np.flatnonzero(found).tolist() == [3, 4, 5, 6, 7, 64, 65, 66, 68, 69]


def test_every_mask_is_about_equally_likely():
  # 3 noise tokens in 2 spans: 2 ways. 7 others in 2 spans: 6 ways.
  draws, ways = 2400, 12
  masks = (
    corruption.random_spans(10, density=0.3, mean_span=1.5, seed=1, number=i) for i in range(draws)
  )
  counts = collections.Counter(tuple(mask.tolist()) for mask in masks)
  assert len(counts) == ways
  expected = draws / ways
  assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in counts.values())


def test_spans_are_three_long_on_average_and_distributed_as_random_segments():
  chunks = 300
  lengths = [runs(corruption.random_spans(568, seed=3, number=i)) for i in range(chunks)]
  for first, items in ((0, 483), (1, 85)):
    found = np.concatenate([each[first::2] for each in lengths])
    assert found.mean() == pytest.approx(items / 28)
    for length in (1, 2, 5):  # of all ways to cut, those whose first segment has this length
      share = math.comb(items - length - 1, 26) / math.comb(items - 1, 27)
      deviation = math.sqrt(share * (1 - share) / len(found))
      assert abs((found == length).mean() - share) < 5 * deviation


def test_neighboring_chunks_and_seeds_have_unrelated_masks():
  masks = np.array([corruption.random_spans(568, seed=0, number=i) for i in range(200)], float)
  others = np.array([corruption.random_spans(568, seed=1, number=i) for i in range(200)], float)
  inner = slice(20, -20)  # both ends are the same in all
  for these, those in ((masks[1:, inner], masks[:-1, inner]), (masks[:, inner], others[:, inner])):
    assert abs(np.corrcoef(these.ravel(), those.ravel())[0, 1]) < 0.02


def test_span_corruption_worked_by_hand():
  # Thank you <for inviting> me to your party <last> week, cut after 'last'.
  tokens = array(11, 12, 13, 14, 15, 16, 17, 18, 19)
  noise = mask_of([(2, 2), (4, 1)])
  inputs, targets = corruption.span_corruption(tokens, noise, vocab_size=100, extra_ids=2)
  assert inputs.tolist() == [11, 12, 99, 15, 16, 17, 18, 98]
  assert targets.tolist() == [99, 13, 14, 98, 19]
  assert inputs.dtype == targets.dtype == np.int32
  assert tokens.tolist() == list(range(11, 20))


@given(alternating, seeds)
def test_span_corruption_equals_its_oracle(spans, seed):
  noise = mask_of(spans)
  tokens = np.random.default_rng(seed).integers(0, 32_000, len(noise)).astype(np.int32)
  inputs, targets = corruption.span_corruption(tokens, noise, **VOCABULARY)
  assert inputs.tolist() == with_sentinels_slowly(tokens.tolist(), noise, 32_100)
  assert targets.tolist() == with_sentinels_slowly(tokens.tolist(), ~noise, 32_100)


@given(alternating, seeds)
@example([(1, 1)], 0)
def test_restoring_gives_the_chunk(spans, seed):
  noise = mask_of(spans)
  tokens = np.random.default_rng(seed).integers(0, 32_000, len(noise)).astype(np.int32)
  halves = corruption.span_corruption(tokens, noise, **VOCABULARY)
  restored = corruption.restore(*halves, **VOCABULARY)
  assert restored.tolist() == tokens.tolist()
  assert restored.dtype == tokens.dtype


@pytest.mark.parametrize(('inputs_length', 'length', 'targets_length'), LENGTHS)
def test_every_chunk_fills_its_lengths_and_comes_back(inputs_length, length, targets_length):
  tokens = np.random.default_rng(length).integers(3, 32_000, length).astype(np.int32)
  for number in range(300):
    noise = corruption.random_spans(length, seed=0, number=number)
    inputs, targets = corruption.span_corruption(tokens, noise, **VOCABULARY)
    assert (len(inputs) + 1, len(targets) + 1) == (inputs_length, targets_length)
    np.testing.assert_array_equal(corruption.restore(inputs, targets, **VOCABULARY), tokens)


def test_too_few_extra_ids_are_refused():
  noise = corruption.random_spans(1137, seed=0, number=0)
  with pytest.raises(ValueError, match=r'57 spans.*has 56 extra ids'):
    corruption.span_corruption(np.zeros(1137, np.int32), noise, vocab_size=400, extra_ids=56)
  corruption.span_corruption(np.zeros(1137, np.int32), noise, vocab_size=400, extra_ids=57)


@pytest.mark.parametrize('noise', [[True, False, True], [False, True, False], [False] * 3])
def test_a_mask_whose_halves_would_not_align_is_refused(noise):
  with pytest.raises(ValueError, match='must start with a token that is not noise and end with no'):
    corruption.span_corruption(array(5, 6, 7), np.array(noise), **VOCABULARY)


@pytest.mark.parametrize(
  ('inputs', 'targets'),
  [
    ((5, 99, 6, 98), (99, 7)),  # a span too few
    ((5, 99), (99, 7, 98, 8)),  # and too many
    ((5, 98), (98, 7)),  # not the first sentinel
    ((5, 98), (99, 7)),  # in one half
    ((99, 5, 99), (99, 7)),  # a sentinel in the text
  ],
)
def test_halves_that_do_not_belong_together_are_refused(inputs, targets):
  with pytest.raises(ValueError, match='not the halves of one chunk'):
    corruption.restore(array(*inputs), array(*targets), vocab_size=100, extra_ids=10)


@given(st.integers(2, 100), st.integers(1, 99), st.integers(1, 99), seeds, numbers)
def test_prefix_and_rest_are_the_chunk_within_the_limits(
  length, max_inputs, max_targets, seed, number
):
  assume(length <= max_inputs + max_targets)
  inputs, targets = corruption.prefix_split(
    np.arange(length), max_inputs=max_inputs, max_targets=max_targets, seed=seed, number=number
  )
  assert np.concatenate([inputs, targets]).tolist() == list(range(length))
  assert 1 <= len(inputs) <= max_inputs
  assert 1 <= len(targets) <= max_targets


@pytest.mark.parametrize(
  ('length', 'max_inputs', 'max_targets', 'allowed'),
  [(13, 8, 9, range(4, 9)), (4, 9, 9, range(1, 4)), (10, 5, 5, [5]), (2, 1, 7, [1])],
)
def test_every_allowed_prefix_is_about_equally_likely(length, max_inputs, max_targets, allowed):
  draws = 1500
  found = collections.Counter(
    len(
      corruption.prefix_split(
        np.arange(length), max_inputs=max_inputs, max_targets=max_targets, seed=0, number=number
      )[0]
    )
    for number in range(draws)
  )
  expected = draws / len(allowed)
  assert sorted(found) == list(allowed)
  assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in found.values())


@pytest.mark.parametrize('length', [0, 1, 11])
def test_a_chunk_that_no_prefix_fits_is_refused(length):
  with pytest.raises(ValueError, match=rf'chunk of {length} tokens.*1 to 4 inputs and 1 to 6 tar'):
    corruption.prefix_split(np.arange(length), max_inputs=4, max_targets=6, seed=0, number=0)


def cut(documents, length, separator=None):
  return [chunk.tolist() for chunk in corruption.chunks(documents, length, separator=separator)]


def test_chunks_worked_by_hand():
  documents = [array(5, 6), array(7, 8, 9, 10, 11, 12, 13), array(14)]
  assert cut(documents, 3) == [[5, 6, 7], [8, 9, 10], [11, 12, 13]]
  assert cut(documents, 3, separator=1) == [[5, 6, 1], [7, 8, 9], [10, 11, 12], [13, 1, 14]]
  assert cut(documents, 11) == []


@given(
  st.lists(st.lists(st.integers(3, 99), max_size=40)),
  st.integers(1, 12),
  st.sampled_from([None, 1]),
)
def test_chunks_are_the_joined_documents_without_the_short_end(documents, length, separator):
  joined = [
    token for each in documents for token in each + ([] if separator is None else [separator])
  ]
  found = cut([array(*each) for each in documents], length, separator)
  assert all(len(chunk) == length for chunk in found)
  assert [token for chunk in found for token in chunk] == joined[: len(joined) // length * length]


def test_chunks_are_int32_and_do_not_share_memory_with_their_document():
  document = np.arange(10, dtype=np.int64)
  found = list(corruption.chunks([document], 5, separator=1))
  document[:] = 0
  assert [chunk.dtype for chunk in found] == [np.int32, np.int32]
  assert found[1].tolist() == [5, 6, 7, 8, 9]


def test_a_chunk_is_given_as_soon_as_it_is_full():
  documents = (array(number, number) for number in itertools.count())
  assert next(corruption.chunks(documents, 4)).tolist() == [0, 0, 1, 1]
  assert next(documents).tolist() == [2, 2]


def peak_memory(documents):
  tracemalloc.start()
  count = sum(1 for _ in corruption.chunks((np.zeros(50, np.int32) for _ in range(documents)), 64))
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert count == documents * 50 // 64
  return peak


def test_memory_does_not_grow_with_the_documents():
  few, many = peak_memory(200), peak_memory(4000)
  assert many < few + 10_000  # the larger has 760,000 bytes more of tokens


def test_chunks_without_tokens_are_refused():
  with pytest.raises(ValueError, match='Chunks of 0 tokens'):
    next(corruption.chunks([array(1)], 0))
