import gzip
import json

import numpy as np
import pytest

from cascades.data import batches, converters
from cascades.data import materialize as records
from cascades.tasks import c4, corruption, sources
from cascades.tasks.sources import Sources
from cascades.tasks.task import both
from cascades.tokenizers import vocabularies

BYTES = vocabularies.bytes_vocabulary(100)
SAMPLE = Sources(sample=True)


def materialize(task, folder, **settings):
  return records.materialize(task, 'train', both(BYTES), folder, **settings)


def text_of_the_sample():
  return [example['text'] for example in sources.examples(c4.dataset(), 'train', SAMPLE)]


@pytest.mark.parametrize(
  ('length', 'chunk', 'targets'),
  [(64, 70, 14), (128, 141, 29), (256, 284, 58), (512, 568, 114), (1024, 1137, 229)],
)
def test_rows_of_span_corruption_are_full_to_the_last_token(tmp_path, length, chunk, targets):
  made = materialize(c4.span_corruption(SAMPLE, inputs_length=length), tmp_path)
  assert (made.lengths + 1 == [length, targets]).all()  # an end of sequence follows each
  joined = np.concatenate([BYTES.encode(text) for text in text_of_the_sample()])
  assert len(made) == len(joined) // chunk
  for number, (inputs, outputs) in enumerate(made.tokens(range(len(made)))):
    restored = corruption.restore(inputs, outputs, vocab_size=BYTES.size, extra_ids=100)
    assert np.array_equal(restored, joined[number * chunk : (number + 1) * chunk])


def test_a_prefix_and_its_rest_are_the_chunk(tmp_path):
  made = materialize(c4.prefix_lm(SAMPLE, length=64), tmp_path)
  joined = np.concatenate([BYTES.encode(text) for text in text_of_the_sample()])
  whole = [np.concatenate(pair) for pair in made.tokens(range(len(made)))]
  assert np.array_equal(np.concatenate(whole), joined[: 64 * len(made)])
  assert made.lengths.min() >= 1
  assert made.lengths.max() <= 63
  assert len({tuple(pair) for pair in made.lengths.tolist()}) > 30


def test_a_causal_model_predicts_every_token_and_the_end_of_each_document(tmp_path):
  made = materialize(c4.causal_lm(SAMPLE, length=64), tmp_path)
  joined = np.concatenate([[*BYTES.encode(text), 1] for text in text_of_the_sample()])
  assert np.array_equal(
    np.concatenate([targets for _, targets in made.tokens(range(len(made)))]),
    joined[: 64 * len(made)],
  )
  (batch,) = [
    next(
      batches.train_batches(
        made, convert=converters.decoder_only, lengths={'inputs': 0, 'targets': 64}, batch_size=4,
        seed=0,
      )
    )
  ]  # fmt: skip
  assert batch.targets.shape == (4, 64)
  assert batch.weights.min() == 1
  assert (batch.inputs[:, 0] == 0).all()
  assert np.array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])


def test_noise_is_the_same_in_every_run_and_another_with_another_seed(tmp_path):
  first, again, other = (
    materialize(c4.span_corruption(SAMPLE, inputs_length=64, seed=seed), tmp_path / str(i))
    for i, seed in enumerate((0, 0, 1))
  )
  tokens = [np.concatenate([t for t, _ in m.tokens(range(len(m)))]) for m in (first, again, other)]
  assert np.array_equal(tokens[0], tokens[1])
  assert not np.array_equal(tokens[0], tokens[2])


def test_another_length_is_another_definition():
  versions = {c4.span_corruption(SAMPLE, inputs_length=n).version for n in (64, 128)}
  versions |= {c4.prefix_lm(SAMPLE, length=n).version for n in (64, 128)}
  assert len(versions) == 4


def test_chunks_are_cut_within_shards_so_that_processes_can_share_the_documents(tmp_path):
  made = materialize(c4.causal_lm(SAMPLE, length=64), tmp_path, rows_per_shard=4)
  assert len(made.manifest.shards) == 3
  whole = materialize(c4.causal_lm(SAMPLE, length=64), tmp_path / 'whole')
  assert len(whole) - 3 <= len(made) <= len(whole)
  ids = [record.row.id for record in made.read(range(len(made)))]
  assert len(set(ids)) == len(ids)


def test_a_vocabulary_without_sentinels_is_refused_with_their_number(tmp_path):
  task = c4.span_corruption(SAMPLE, inputs_length=512)
  with pytest.raises(ValueError, match='28'):
    records.materialize(task, 'train', both(vocabularies.bytes_vocabulary()), tmp_path)


def test_the_json_release_is_found_and_read_file_after_file(tmp_path):
  for i in range(2):
    name = f'c4-train.0000{i}-of-01024.json.gz'
    with gzip.open(tmp_path / name, 'wt') as stream:
      for j in range(3):
        row = {'text': f'document {i} {j}', 'timestamp': '2019-04-25T12:57:54Z', 'url': 'x'}
        stream.write(json.dumps(row) + '\n')
  task = c4.causal_lm(Sources(tmp_path, tmp_path / 'none'), length=8)
  assert [row.inputs for row in task.rows('train')] == [
    f'document {i} {j}' for i in range(2) for j in range(3)
  ]
  with pytest.raises(FileNotFoundError, match=r'c4-validation\.\*-of-\*\.json'):
    next(task.rows('validation'))


def test_real_text_becomes_full_rows(real_data, tmp_path):
  """English documents of the reference data, under the names of the release."""
  (tmp_path / 'c4-train.00000-of-00001.json.gz').symlink_to(
    real_data / 'pretrain_en' / 'docs.jsonl.gz'
  )
  task = c4.span_corruption(Sources(tmp_path, tmp_path / 'none'), inputs_length=256)
  documents = task.rows('train')
  some = [next(documents) for _ in range(20)]
  found = list(task.tokenize(some, both(BYTES), 0))
  length = sum(len(BYTES.encode(row.inputs)) for row in some)
  assert len(found) == length // 284
  assert {(len(record.inputs), len(record.targets)) for record in found} == {(255, 57)}
