"""Hugging Face's own library writes what we read, and reads what we write."""

from __future__ import annotations

import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from cascades.checkpoints import store
from cascades.interop import hf_config, huggingface, tensor_tables
from cascades.models import configs
from tests.golden import twins
from tests.interop import twin_folders

pytestmark = pytest.mark.reference

# Of the twins with other settings: transformers' defaults, random weights of its own.
MT5 = 'mt5'
NAMES = [*twins.CONFIGS, MT5]


@pytest.fixture(scope='module', autouse=True)
def hf():
  pytest.importorskip('torch', reason="needs the extra 'reference': make reference")
  return pytest.importorskip('transformers', reason="needs the extra 'reference': make reference")


def _config(hf, name):
  if name == MT5:
    settings = {**twin_folders.config('t5_1_1'), 'model_type': 'mt5'}
    del settings['scale_decoder_outputs']
    return hf.MT5Config(**{key: value for key, value in settings.items() if key != 'model_type'})
  return hf.AutoConfig.for_model(**twin_folders.config(name))


def _kind(hf, name):
  return hf.AutoModelForSeq2SeqLM if 't5' in name else hf.AutoModelForCausalLM


def _saved(hf, name, folder, **options):
  """A random model as transformers saves it; every weight differs from its initial one."""
  import torch

  torch.manual_seed(0)
  model = _kind(hf, name).from_config(_config(hf, name)).eval()
  if name in ('t5_1_1', 'llama', MT5):  # untied, whatever transformers 5 initializes
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
  model.save_pretrained(folder, **options)
  return model


def _logits(model, name):
  import torch

  golden = {k: torch.tensor(v) for k, v in twins.load('t5_1_1' if name == MT5 else name).items()}
  with torch.no_grad():
    if 'encoder' not in golden:
      return model(input_ids=golden['inputs']).logits.float().numpy()
    mask = (golden['encoder'] != 0).long()
    return model(
      input_ids=golden['encoder'], attention_mask=mask, decoder_input_ids=golden['inputs']
    ).logits.numpy()


@pytest.mark.parametrize('name', NAMES)
def test_logits_are_equal_both_ways(hf, name, tmp_path):
  original = _saved(hf, name, tmp_path / 'theirs', max_shard_size='20KB')
  assert len(list((tmp_path / 'theirs').glob('*.safetensors'))) > 1
  expected = _logits(original, name)
  config, params = twin_folders.load(tmp_path / 'theirs')
  got = twin_folders.logits(config, params, 't5_1_1' if name == MT5 else name)
  np.testing.assert_allclose(got, expected, atol=2e-5 * max(1, np.abs(expected).max()))

  described = configs.describe(config)
  hint = huggingface.read_config(tmp_path / 'theirs')['model_type']
  written = hf_config.configuration(described, hint)
  table = huggingface.open_folder(tmp_path / 'theirs').tensors.table
  huggingface.write_folder(tmp_path / 'ours', written, tensor_tables.unload(table, params), {})
  again, report = _kind(hf, name).from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert not any(report.values()), report
  np.testing.assert_array_equal(_logits(again.eval(), name), expected)


def test_a_bfloat16_export_holds_the_bits_that_were_imported(hf, tmp_path):
  import torch

  model = _saved(hf, 'qwen2', tmp_path / 'theirs').to(torch.bfloat16)
  model.save_pretrained(tmp_path / 'theirs')
  for dtype in ('bfloat16', 'float32'):
    _, params = twin_folders.load(tmp_path / 'theirs', dtype=dtype)
    narrow = jax.tree.map(lambda x: x.astype('bfloat16'), params)
    table = huggingface.open_folder(tmp_path / 'theirs').tensors.table
    tensors = tensor_tables.unload(table, narrow)
    stored = load_file(tmp_path / 'theirs' / 'model.safetensors')
    assert tensors.keys() == stored.keys()
    for key, expected in stored.items():
      np.testing.assert_array_equal(tensors[key].compute().view('u2'), expected.view('u2'))


@pytest.mark.parametrize('name', ['t5_1_0', 'llama'])
def test_the_command_that_converts_pickles_does_it(hf, name, tmp_path):
  import torch

  model = _saved(hf, name, tmp_path)
  torch.save(model.state_dict(), tmp_path / 'pytorch_model.bin')
  (tmp_path / 'model.safetensors').unlink()
  with pytest.raises(store.CheckpointError) as error:
    huggingface.open_folder(tmp_path)
  _, *command = shlex.split(str(error.value).splitlines()[-1])
  done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  config, params = twin_folders.load(tmp_path)
  expected = _logits(model, name)
  got = twin_folders.logits(config, params, name)
  np.testing.assert_allclose(got, expected, atol=2e-5 * max(1, np.abs(expected).max()))
