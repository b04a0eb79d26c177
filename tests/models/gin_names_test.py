"""Names of the model configurations in gin files, on the command line and in saved files."""

from __future__ import annotations

import gin
import pytest

from cascades import cli
from cascades.models import decoder, lora, t5

FILE = """
from __gin__ import dynamic_registration
from cascades.models import decoder
from cascades.models import lora
from cascades.models import t5
from cascades.training import setup

setup.SmallModel.config = @t5.Config()
setup.LargeModel.dtype = 'bfloat16'
setup.SmallModel.adapters = @lora.Config()
SIZE = 24
t5.Config:
  vocab_size = %SIZE
  num_heads = 2
decoder.Config.vocab_size = 300
"""
NAMES = {
  't5.Config': t5.T5Config,
  'decoder.Config': decoder.DecoderConfig,
  'lora.Config': lora.LoraConfig,
}


@pytest.fixture(autouse=True)
def nothing_bound():
  gin.clear_config()
  yield
  gin.clear_config()


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'recipe.gin'
  path.write_text(FILE)
  return str(path)


def _build(config):
  return gin.get_configurable(config)()


def test_files_and_commands_bind_the_same_configuration(file):
  cli.configure('cascades.train', [file], ['t5.Config.emb_dim = 8', 'lora.Config.rank = 3'])
  built = _build(t5.T5Config)
  assert type(built) is t5.T5Config  # as `configs.describe` asks
  assert built == t5.T5Config(24, emb_dim=8, num_heads=2)
  assert _build(lora.LoraConfig) == lora.LoraConfig(rank=3)


@pytest.mark.parametrize('name', NAMES)
def test_the_alias_is_the_class(name):
  cli.configure('cascades.train', [], [f'REFERENCE = @{name}'])
  reference = gin.query_parameter('REFERENCE/macro.value')
  assert reference.configurable.wrapped is NAMES[name]


def test_the_operative_configuration_reads_back_under_the_same_names(file, tmp_path):
  sizes = [f'decoder.Config.{n} = 2' for n in ('emb_dim', 'num_heads', 'num_kv_heads', 'mlp_dim')]
  sizes += ['decoder.Config.num_layers = 1', 'decoder.Config.head_dim = 2']
  cli.configure('cascades.train', [file], ['t5.Config.emb_dim = 8', *sizes])
  built = [_build(config) for config in NAMES.values()]
  saved = gin.operative_config_str()
  for line in ('t5.Config.emb_dim = 8', 't5.Config.vocab_size = %SIZE', 'lora.Config.rank = 8'):
    assert line in saved.splitlines()
  gin.clear_config()
  path = tmp_path / 'config.gin'
  path.write_text(saved)
  cli.configure('cascades.train', [str(path)], [])
  assert [_build(config) for config in NAMES.values()] == built
