"""Pre-training in the reproduction: what a point stores, by hand, and a point that is trained."""

import dataclasses
import functools
import gzip
import json

import numpy as np
import pytest

from benchmarks import cat_grid, cat_pretraining, cat_runs, cat_tasks
from benchmarks.cat_grid import Cell
from cascades.models import decoder
from cascades.tasks import c4
from cascades.tokenizers import vocabularies

TINY = decoder.DecoderConfig(
  0, emb_dim=16, num_heads=2, num_kv_heads=1, num_layers=1, head_dim=8, mlp_dim=32
)


def test_a_point_of_four_rows_by_hand(tmp_path):
  small, large = tmp_path / 'small', tmp_path / 'large'
  for run, right in ((small, [1, 2, 0, 4]), (large, [2, 2, 3, 4])):
    run.mkdir()
    forced = {'doubt': [8.0, 4, 4, 2], 'right': right, 'tokens': [4, 4, 4, 4]}
    np.savez(run / 'forced.npz', **{name: np.array(values) for name, values in forced.items()})
  columns, numbers = cat_pretraining.summarize(small, large)
  # Rows 2 and 3 test: of 4 tokens each, the small model has 0 and 4 right, the large one 3 and 4.
  assert columns['average'].tolist() == [1.0, 0.5]
  assert columns['small'].tolist() == [[0, 4], [4, 4]]
  assert (numbers['alone'], numbers['large alone']) == (4 / 8, 7 / 8)
  assert numbers['validation alone'] == 3 / 8
  # The first row is deferred first, which gains everything: (1/2 + 7/8) / 4 + 7/8 / 2.
  assert numbers['area'] == pytest.approx((0.5 + 0.875) / 4 + 0.875 / 2)
  assert (numbers['metric'], numbers['rows']) == ('token_accuracy', 2)


def write(directory, texts):
  path = directory / cat_pretraining.DOCUMENTS
  path.parent.mkdir(parents=True)
  with gzip.open(path, 'wt') as file:
    file.writelines(json.dumps({'text': text}) + '\n' for text in texts)


def test_documents_are_held_out_or_trained_on_and_never_both(tmp_path, monkeypatch):
  monkeypatch.setattr(cat_pretraining, 'HELD_OUT_CHARACTERS', 100)
  monkeypatch.setattr(cat_pretraining, 'TRAIN_CHARACTERS', 300)
  write(tmp_path, [f'{number:050d}' for number in range(20)])
  cat_pretraining.write_documents(tmp_path / cat_pretraining.DOCUMENTS, tmp_path / 'work')
  texts = {
    split: (tmp_path / 'work' / f'c4-{split}.00000-of-00001.json').read_text().splitlines()
    for split in ('validation', 'train')
  }
  assert {split: len(lines) for split, lines in texts.items()} == {'validation': 2, 'train': 6}
  assert not set(texts['validation']) & set(texts['train'])


def test_pretraining_has_its_own_claims_and_comes_after_the_other_tasks():
  parts = list(cat_grid.parts())
  for task in cat_grid.PRETRAINING:
    assert parts.index(f'{task}: base') > parts.index('libreoffice_ru: base')
    assert 'bench_passages' not in ''.join(cat_tasks.SETTINGS[task].needs)


@pytest.mark.slow
def test_a_tiny_language_model_is_trained_and_predicts_every_row(tmp_path, monkeypatch):
  monkeypatch.setattr(cat_pretraining, 'HELD_OUT_CHARACTERS', 400)
  monkeypatch.setattr(cat_pretraining, 'TRAIN_CHARACTERS', 1200)
  monkeypatch.setattr(cat_pretraining, '_pieces', lambda _: vocabularies.bytes_vocabulary(8))
  write(tmp_path, ['the cat sat on the mat. ' * 4 for _ in range(40)])
  run = cat_tasks.Training(steps=4, rate=1e-2, warmup=1)
  setting = dataclasses.replace(
    cat_tasks.SETTINGS['pretrain_causal'],
    task=functools.partial(
      cat_tasks.pretraining, name='causal', make=functools.partial(c4.causal_lm, length=16)
    ),
    lengths={'inputs': 1, 'targets': 16}, sizes={'nano': TINY}, large=TINY, top_k=4,
    training=run, large_training=run, batch=8,
  )  # fmt: skip
  folders = cat_tasks.Folders(tmp_path, tmp_path / 'work')
  bench = cat_runs.Bench(folders, {'pretrain_causal': setting})
  summary = bench.execute(Cell('pretrain_causal', 'nano', 'cat_xent', factor=1.0))
  rows = bench.rows(Cell('pretrain_causal', 'nano', 'cat_xent', factor=1.0))
  assert (rows.small[:, 1] == 16).all()
  assert summary['alone'] == rows.small[:, 0].sum() / rows.small[:, 1].sum()
  assert np.isfinite(rows.score).all()
