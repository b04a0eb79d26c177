"""Sizes of decoder-only models: the published numbers of parameters, the released config.json."""

from __future__ import annotations

import dataclasses
import pathlib

import gin
import pytest

from cascades import cli
from cascades.interop import gguf, hf_config
from cascades.models import configs, decoder
from tests.interop import gguf_packages_test, hf_config_test

PRESETS = pathlib.Path(__file__).parents[2] / 'gin_configs' / 'models'

# As the released checkpoints count, tied tables once, without what Gemma 3 sees images with.
PARAMETERS = {
  'gemma_2_2b': 2_614_341_888,
  'gemma_2_9b': 9_241_705_984,
  'gemma_2_27b': 27_227_128_320,
  'gemma_3_270m': 268_098_176,
  'gemma_3_1b': 999_885_952,
  'gemma_3_4b': 3_880_263_168,
  'gemma_3_12b': 11_766_034_176,
  'gemma_3_27b': 27_009_346_304,
  'llama_2_7b': 6_738_415_616,
  'llama_2_13b': 13_015_864_320,
  'llama_3_8b': 8_030_261_248,
  'llama_3_1_8b': 8_030_261_248,
  'llama_3_2_1b': 1_235_814_400,
  'llama_3_2_3b': 3_212_749_824,
  'smollm2_135m': 134_515_008,
  'smollm2_360m': 361_821_120,
  'smollm2_1_7b': 1_711_376_384,
  'qwen2_5_0_5b': 494_032_768,
  'qwen2_5_1_5b': 1_543_714_304,
  'qwen2_5_3b': 3_085_938_688,
  'qwen2_5_7b': 7_615_616_512,
  'qwen2_5_14b': 14_770_033_664,
  'qwen2_5_32b': 32_763_876_352,
  'qwen3_0_6b': 596_049_920,
  'qwen3_1_7b': 1_720_574_976,
  'qwen3_4b': 4_022_468_096,
  'qwen3_8b': 8_190_735_360,
  'qwen3_14b': 14_768_307_200,
  'qwen3_32b': 32_762_123_264,
}

# Released configurations: of which one they are a variation, and D, N, K, layers, H, F.
SIZES = (
  'hidden_size', 'num_attention_heads', 'num_key_value_heads', 'num_hidden_layers', 'head_dim',
  'intermediate_size',
)  # fmt: skip
UNTIED = {'tie_word_embeddings': False}
QWEN_2_5 = {**UNTIED, 'vocab_size': 152064}
LLAMA_3 = {**UNTIED, 'rope_scaling': None}
LLAMA_3_1 = {
  'factor': 8.0, 'high_freq_factor': 4.0, 'low_freq_factor': 1.0,
  'original_max_position_embeddings': 8192, 'rope_type': 'llama3',
}  # fmt: skip
RELEASED = {
  'gemma_2_2b': ('gemma-2-2b', (2304, 8, 4, 26, 256, 9216), {}),
  'gemma_2_9b': ('gemma-2-2b', (3584, 16, 8, 42, 256, 14336), {}),
  'gemma_2_27b': ('gemma-2-2b', (4608, 32, 16, 46, 128, 36864), {'query_pre_attn_scalar': 144}),
  'gemma_3_270m': ('gemma-3-1b', (640, 4, 1, 18, 256, 2048), {}),
  'gemma_3_1b': ('gemma-3-1b', (1152, 4, 1, 26, 256, 6912), {}),
  'gemma_3_4b': ('gemma-3-4b', (2560, 8, 4, 34, 256, 10240), {}),
  'gemma_3_12b': ('gemma-3-4b', (3840, 16, 8, 48, 256, 15360), {}),
  'gemma_3_27b': ('gemma-3-4b', (5376, 32, 16, 62, 128, 21504), {'query_pre_attn_scalar': 168}),
  'llama_2_7b': ('Llama-2-7b', (4096, 32, 32, 32, 128, 11008), {}),
  'llama_2_13b': ('Llama-2-7b', (5120, 40, 40, 40, 128, 13824), {}),
  'llama_3_8b': ('Llama-3.2-1B', (4096, 32, 8, 32, 128, 14336), LLAMA_3),
  'llama_3_1_8b': (
    'Llama-3.2-1B', (4096, 32, 8, 32, 128, 14336), {**UNTIED, 'rope_scaling': LLAMA_3_1}
  ),
  'llama_3_2_1b': ('Llama-3.2-1B', (2048, 32, 8, 16, 64, 8192), {}),
  'llama_3_2_3b': ('Llama-3.2-1B', (3072, 24, 8, 28, 128, 8192), {}),
  'smollm2_135m': ('SmolLM2-135M', (576, 9, 3, 30, 64, 1536), {}),
  'smollm2_360m': ('SmolLM2-135M', (960, 15, 5, 32, 64, 2560), {}),
  'smollm2_1_7b': ('SmolLM2-135M', (2048, 32, 32, 24, 64, 8192), {'rope_theta': 130000}),
  'qwen2_5_0_5b': ('Qwen2.5-0.5B', (896, 14, 2, 24, 64, 4864), {}),
  'qwen2_5_1_5b': ('Qwen2.5-0.5B', (1536, 12, 2, 28, 128, 8960), {}),
  'qwen2_5_3b': ('Qwen2.5-0.5B', (2048, 16, 2, 36, 128, 11008), {}),
  'qwen2_5_7b': ('Qwen2.5-0.5B', (3584, 28, 4, 28, 128, 18944), QWEN_2_5),
  'qwen2_5_14b': (
    'Qwen2.5-0.5B', (5120, 40, 8, 48, 128, 13824), {**QWEN_2_5, 'rms_norm_eps': 1e-5}
  ),
  'qwen2_5_32b': (
    'Qwen2.5-0.5B', (5120, 40, 8, 64, 128, 27648), {**QWEN_2_5, 'rms_norm_eps': 1e-5}
  ),
  'qwen3_0_6b': ('Qwen3-0.6B', (1024, 16, 8, 28, 128, 3072), {}),
  'qwen3_1_7b': ('Qwen3-0.6B', (2048, 16, 8, 28, 128, 6144), {}),
  'qwen3_4b': ('Qwen3-0.6B', (2560, 32, 8, 36, 128, 9728), {}),
  'qwen3_8b': ('Qwen3-0.6B', (4096, 32, 8, 36, 128, 12288), UNTIED),
  'qwen3_14b': ('Qwen3-0.6B', (5120, 40, 8, 40, 128, 17408), UNTIED),
  'qwen3_32b': ('Qwen3-0.6B', (5120, 64, 8, 64, 128, 25600), UNTIED),
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def preset(name):
  """Configuration of a preset with the default recomputation, which is no part of the model."""
  cli.configure('cascades.train', [f'models/{name}.gin'], [])
  config = gin.get_configurable(decoder.DecoderConfig)()
  return dataclasses.replace(config, remat_policy='elementwise')


def test_every_preset_of_a_decoder_is_checked():
  stems = {path.stem for path in PRESETS.glob('*.gin') if 't5' not in path.stem}
  names = {stem for stem in stems if not stem.startswith('decoder_')}  # sizes of no released model
  assert names == PARAMETERS.keys() == RELEASED.keys()


@pytest.mark.parametrize('name', PARAMETERS)
def test_a_preset_has_the_published_number_of_parameters(name):
  assert configs.count_parameters(preset(name)) == PARAMETERS[name]


@pytest.mark.parametrize('name', RELEASED)
def test_a_preset_is_what_its_released_configuration_describes(name):
  of, sizes, changes = RELEASED[name]
  released = hf_config.text_config(hf_config_test.PUBLISHED[of][0])
  released = {**released, **dict(zip(SIZES, sizes, strict=True)), **changes}
  assert configs.from_description(hf_config.describe(released)) == preset(name)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'model'), [('smollm2_135m', 'smollm2'), ('gemma_3_270m', 'gemma3')]
)
def test_a_preset_is_what_the_real_file_says(name, model, tmp_path):
  file = gguf_packages_test.FILES[model](tmp_path)
  assert configs.from_description(gguf.open_file(file).description) == preset(name)
