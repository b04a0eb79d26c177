"""GGUF files and T5X's checkpoints, in by one program and out by the other."""

from __future__ import annotations

import dataclasses
import json

import gin
import jax
import numpy as np
import pytest
from flax import nnx

from cascades import cli, convert, export
from cascades.checkpoints import store
from cascades.interop import t5x_files
from cascades.interop.pretrained import open_pretrained
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from cascades.tokenizers import from_folder, vocabularies
from cascades.types import Batch
from tests import testing, tiny
from tests.interop import gguf_test, t5x_variants_test, twin_folders
from tests.interop.t5x_arrays import TINY, random_arrays, write_native
from tests.tokenizers.huggingface_test import SPECIAL, TEXTS, byte_level

SYMBOLS = vocabularies.symbols([*'abcdefghijklmnop'])
TEMPLATE = '{% for message in messages %}{{ message.content }}{% endfor %}'


def _convert(source, run, **options):
  convert.convert(str(source), str(run), **{'mesh': tiny.one_device} | options)


def _export(run, output, **options):
  export.export(str(run), str(output), mesh=tiny.one_device, **options)


def _params(run):
  """Configuration and parameters, by path, of a run directory."""
  config = configs.from_description(store.read_description(run)['model'])
  with partitioning.use(tiny.one_device()):
    _, abstract = abstract_model(config)
    return config, twin_folders.flat(store.restore_params(run, abstract))


@pytest.fixture(scope='module')
def gguf_file(tmp_path_factory):
  """A tiny Llama with a tokenizer, as llama.cpp writes it."""
  tokenizer = json.loads(byte_level(digits=True).to_str())['model']
  tokens = sorted(tokenizer['vocab'], key=tokenizer['vocab'].get)
  settings = {
    'llama.context_length': 77,
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'smollm',
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.token_type': [3 if token in SPECIAL else 1 for token in tokens],
    'tokenizer.ggml.merges': [' '.join(merge) for merge in tokenizer['merges']],
    'tokenizer.ggml.eos_token_id': 2,
    'tokenizer.ggml.eot_token_id': 4,
    'tokenizer.ggml.padding_token_id': 3,
    'tokenizer.chat_template': TEMPLATE,
  }
  config = dataclasses.replace(gguf_test.TWINS['llama'], vocab_size=len(tokens))
  return gguf_test._write(tmp_path_factory.mktemp('gguf'), 'llama', config, settings=settings)


@pytest.fixture(scope='module')
def from_gguf(gguf_file, tmp_path_factory):
  """The run directory of a GGUF file, and the folder of Hugging Face that it is exported to."""
  folder = tmp_path_factory.mktemp('from gguf')
  _convert(gguf_file, folder / 'run')
  _export(folder / 'run', folder / 'theirs')
  return folder


def test_a_gguf_file_becomes_a_folder_of_hugging_face(gguf_file, from_gguf):
  exported = from_gguf / 'theirs'
  vocabulary = vocabularies.load(from_gguf / 'run')
  assert vocabulary.fingerprint == vocabularies.gguf(gguf_file).fingerprint
  assert from_folder.read_vocabulary(exported).fingerprint == vocabulary.fingerprint
  config = json.loads((exported / 'config.json').read_text())
  assert config['max_position_embeddings'] == 77
  assert config['model_type'] == 'llama'
  assert config['eos_token_id'] == [2, 4]
  ids = json.loads((exported / 'generation_config.json').read_text())
  assert ids == {'eos_token_id': [2, 4], 'pad_token_id': 3}
  assert json.loads((exported / 'tokenizer_config.json').read_text())['chat_template'] == TEMPLATE

  _convert(exported, from_gguf / 'again')
  config, params = _params(from_gguf / 'run')
  again, same = _params(from_gguf / 'again')
  assert again == config
  jax.tree.map(np.testing.assert_array_equal, same, params)
  expected = testing.weights(config)
  assert params.keys() == expected.keys()
  jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.reference
def test_transformers_answers_as_we_do_from_what_a_gguf_file_became(from_gguf):
  torch = pytest.importorskip('torch', reason='needs the extra `reference`')
  transformers = pytest.importorskip('transformers', reason='needs the extra `reference`')
  exported = str(from_gguf / 'theirs')
  tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
  model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype='float32').eval()
  vocabulary = vocabularies.load(from_gguf / 'run')
  ids = np.array([vocabulary.encode(TEXTS[1])])
  assert tokenizer(TEXTS[1])['input_ids'] == ids[0].tolist()
  chat = [{'role': 'user', 'content': TEXTS[0]}]
  assert tokenizer.apply_chat_template(chat, tokenize=False) == TEXTS[0]
  assert model.generation_config.eos_token_id == [2, 4]
  with torch.no_grad():
    want = model(torch.tensor(ids)).logits.numpy()
  config, params = _params(from_gguf / 'run')
  graph, _ = nnx.split(nnx.eval_shape(lambda: config.build(jax.random.key(0))))
  actual = nnx.merge(graph, nnx.traversals.unflatten_mapping(params, sep='/'))
  loaded = actual.readout(actual.hidden(Batch(ids, None, None)))
  np.testing.assert_allclose(loaded, want, atol=1e-5)


OF_T5X = {
  '1.1': (TINY, random_arrays),
  'scanned': (
    t5x_variants_test.OURS[0],
    lambda config: t5x_variants_test.of_each_layer(config, t5x_variants_test.NOW),
  ),
  'decoder-only': (t5x_variants_test.UNTIED, random_arrays),
}


@pytest.mark.parametrize('name', OF_T5X)
def test_t5x_comes_in_and_goes_out_bit_by_bit(name, tmp_path):
  config, make = OF_T5X[name]
  stored = make(config)
  write_native(tmp_path / 'checkpoint_5', stored)
  options = {'dropout_rate': 0.1}
  _convert(tmp_path / 'checkpoint_5', tmp_path / 'run', vocabulary=SYMBOLS, model_options=options)
  assert _params(tmp_path / 'run')[0] == dataclasses.replace(config, dropout_rate=0.1)
  _export(tmp_path / 'run', tmp_path / 'theirs', format='t5x')
  loaded = t5x_files.arrays(tmp_path / 'theirs' / 'checkpoint_0')
  again = {n: array.read().result() for n, array in loaded.items() if n.startswith('target/')}
  assert again.keys() == {f'target/{name}' for name in stored}
  for key, value in stored.items():
    np.testing.assert_array_equal(again[f'target/{key}'], value)
  with pytest.raises(store.CheckpointError, match='exists: remove it'):
    _export(tmp_path / 'run', tmp_path / 'theirs', format='t5x')


def test_a_t5_of_t5x_becomes_one_of_hugging_face(tmp_path):
  write_native(tmp_path / 'checkpoint_5', random_arrays(TINY))
  _convert(tmp_path / 'checkpoint_5', tmp_path / 'run', vocabulary=SYMBOLS)
  _export(tmp_path / 'run', tmp_path / 'theirs')
  config = open_pretrained(tmp_path / 'theirs', vocabulary=SYMBOLS).config
  assert dataclasses.replace(config, dropout_rate=0.0) == TINY
  _convert(tmp_path / 'theirs', tmp_path / 'again', vocabulary=SYMBOLS)
  first, other = (_params(tmp_path / name)[1] for name in ('run', 'again'))
  jax.tree.map(np.testing.assert_array_equal, first, other)


@pytest.mark.parametrize('name', ['scanned', 'decoder-only'])
def test_what_transformers_lacks_is_named(name, tmp_path):
  config, make = OF_T5X[name]
  write_native(tmp_path / 'checkpoint_5', make(config))
  _convert(tmp_path / 'checkpoint_5', tmp_path / 'run', vocabulary=SYMBOLS)
  with pytest.raises(store.CheckpointError, match=r'no model of transformers .* relative_'):
    _export(tmp_path / 'run', tmp_path / 'theirs')
  with pytest.raises(ValueError, match="FORMAT is 'onnx'; it can be huggingface or t5x"):
    _export(tmp_path / 'run', tmp_path / 'theirs', format='onnx')
  assert not (tmp_path / 'theirs').exists()


def test_t5x_has_no_tokenizer_and_no_unknown_options(tmp_path):
  write_native(tmp_path / 'checkpoint_5', random_arrays(TINY))
  with pytest.raises(ValueError, match=r'holds no tokenizer.*VOCABULARY=@vocabularies'):
    _convert(tmp_path / 'checkpoint_5', tmp_path / 'run')
  with pytest.raises(ValueError, match='has unknown fields depth'):
    _convert(
      tmp_path / 'checkpoint_5', tmp_path / 'run', vocabulary=SYMBOLS, model_options={'depth': 3}
    )
  assert not (tmp_path / 'run').exists()


def test_a_run_directory_is_not_converted_again(from_gguf, tmp_path):
  with pytest.raises(store.CheckpointError, match='is a run directory already'):
    _convert(from_gguf / 'run', tmp_path / 'run')


def _run(program, function, *bindings):
  """Runs a program as the command line does, but in this process."""
  gin.clear_config()
  cli.configure(f'cascades.{program}', [f'runs/{program}.gin'], bindings)
  try:
    gin.get_configurable(function)()
  finally:
    gin.clear_config()


def test_the_gin_files_convert_and_export(tmp_path):
  write_native(tmp_path / 'checkpoint_5', random_arrays(TINY))
  settings = [
    f'SOURCE={tmp_path}/checkpoint_5',
    f'MODEL_DIR={tmp_path}/run',
    "MODEL_OPTIONS={'dropout_rate': 0.1}",
    'VOCABULARY=@vocabularies.symbols()',
    f'vocabularies.symbols.names={[*"abcdefghijklmnop"]}',
  ]
  _run('convert', convert.convert, *settings)
  loaded = configs.from_description(store.read_description(tmp_path / 'run')['model'])
  assert loaded == dataclasses.replace(TINY, dropout_rate=0.1)
  settings = [f'CHECKPOINT_PATH={tmp_path}/run', f'OUTPUT_DIR={tmp_path}/out', 'FORMAT=t5x']
  _run('export', export.export, *settings)
  assert (tmp_path / 'out' / 'checkpoint_0' / 'checkpoint').exists()
  with pytest.raises(store.CheckpointError, match='or set OVERWRITE=True'):
    _run('export', export.export, *settings)
  _run('export', export.export, *settings, 'OVERWRITE=True')
