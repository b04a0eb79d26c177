"""Folders of encoders: BERT, MiniLM, MPNet, and what sentence-transformers leaves beside them."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest
from flax import nnx

from cascades.checkpoints import store
from cascades.interop import families, hf_config, huggingface
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from tests import testing
from tests.golden import hf_weights, twins
from tests.interop import twin_folders

_MINILM = {
  'model_type': 'bert',
  'hidden_act': 'gelu',
  'hidden_size': 384,
  'intermediate_size': 1536,
  'layer_norm_eps': 1e-12,
  'max_position_embeddings': 512,
  'num_attention_heads': 12,
  'num_hidden_layers': 6,
  'position_embedding_type': 'absolute',
  'type_vocab_size': 2,
  'vocab_size': 30522,
}
_MPNET = {
  'model_type': 'mpnet',
  'hidden_act': 'gelu',
  'hidden_size': 768,
  'intermediate_size': 3072,
  'layer_norm_eps': 1e-05,
  'max_position_embeddings': 514,
  'num_attention_heads': 12,
  'num_hidden_layers': 12,
  'pad_token_id': 1,
  'relative_attention_num_buckets': 32,
  'vocab_size': 30527,
}
_BERT_BASE = _MINILM | {'hidden_size': 768, 'intermediate_size': 3072, 'num_hidden_layers': 12}
# The published number less the pooler's D^2 + D, which no sentence embedding reads.
PUBLISHED = {
  'all-MiniLM-L6-v2': (_MINILM, 22_713_216 - 384 * 385),
  'all-mpnet-base-v2': (_MPNET, 109_486_464 - 768 * 769),
  'bert-base-uncased': (_BERT_BASE, 109_482_240 - 768 * 769),
}


def load(folder, mesh=None):
  actual = huggingface.open_folder(folder)
  config = configs.encoder(actual.description)
  with partitioning.use(mesh or partitioning.make_mesh(devices=jax.devices()[:1])):
    graph, abstract = abstract_model(config)
  return config, graph, actual.tensors.load(abstract)


def tensors(name):
  return hf_weights.weights(twins.ENCODERS[name])


def write(folder, name, stored=None):
  return twin_folders.write(folder, twin_folders.config(name), stored or tensors(name))


def assert_twin(params, name):
  actual, expected = twin_folders.flat(params), testing.weights(twins.ENCODERS[name])
  assert actual.keys() == expected.keys()
  for path in expected:
    np.testing.assert_array_equal(actual[path], expected[path], err_msg=path)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_configurations_have_the_published_size(name):
  config, parameters = PUBLISHED[name]
  assert configs.count_parameters(configs.encoder(hf_config.describe(config))) == parameters


@pytest.mark.parametrize('name', twins.ENCODERS)
def test_a_folder_is_the_encoder_that_has_the_golden_states(name, tmp_path):
  config, _, params = load(write(tmp_path, name))
  assert config == twins.ENCODERS[name]
  assert_twin(params, name)


def test_weights_go_where_the_mesh_wants_them(tmp_path):
  _, _, params = load(write(tmp_path, 'mpnet'), partitioning.make_mesh(1, 4, 2))
  assert params['blocks']['wi']['kernel'].addressable_shards[0].data.shape == (2, 4, 12)
  assert params['blocks']['query']['bias'].addressable_shards[0].data.shape == (2, 1, 8)
  assert_twin(params, 'mpnet')


@pytest.mark.parametrize('name', twins.ENCODERS)
def test_a_head_and_its_prefix_are_passed_by(name, tmp_path):
  """The names in a masked language model of 2018, gamma and beta."""
  old = lambda key: re.sub('Norm.weight', 'Norm.gamma', re.sub('Norm.bias', 'Norm.beta', key))
  stored = {f'{name}.{old(key)}': value for key, value in tensors(name).items()}
  first = np.ones((3,), np.float32)
  stored |= {
    'cls.predictions.bias': first,
    'lm_head.bias': first,
    f'{name}.pooler.dense.bias': first,
  }
  stored |= {f'{name}.embeddings.position_ids': np.arange(20)[None]}
  _, _, params = load(write(tmp_path, name, stored))
  assert_twin(params, name)


def test_what_is_missing_or_not_known_is_named(tmp_path):
  stored = tensors('bert')
  stored['classifier.weight'] = stored.pop('encoder.layer.1.output.dense.bias')
  words = 'missing: encoder.layer.1.output.dense.bias; not known to this model: classifier.weight'
  with pytest.raises(store.CheckpointError, match=words):
    load(write(tmp_path, 'bert', stored))


def test_every_parameter_has_a_name_in_its_family():
  for name, config in twins.ENCODERS.items():
    table = families.table(configs.describe(config))
    assert {rule.parameter for rule in table.rules} == testing.weights(config).keys(), name


@pytest.mark.parametrize(
  ('config', 'change', 'words'),
  [
    (_MINILM, {'hidden_act': 'relu'}, "hidden_act='relu' in config.json of a bert model"),
    (
      _MINILM,
      {'position_embedding_type': 'relative_key'},
      "position_embedding_type='relative_key'",
    ),
    (_MINILM, {'is_decoder': True}, 'is_decoder=True'),
    (_MPNET, {'relative_attention_num_buckets': 16}, 'relative_attention_num_buckets=16'),
    (_MPNET, {'pad_token_id': 0}, 'pad_token_id=0 in config.json of a mpnet model'),
  ],
)
def test_an_option_that_is_not_supported_is_named(config, change, words):
  with pytest.raises(store.CheckpointError, match=re.escape(words)):
    hf_config.describe(config | change)


def test_an_encoder_is_not_written():
  with pytest.raises(store.CheckpointError, match='encoders cannot be written'):
    hf_config.configuration(configs.describe(twins.ENCODERS['bert']))


def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path):
  folder = write(tmp_path, 'bert')
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
  with pytest.raises(store.CheckpointError, match='from transformers import AutoModel as M'):
    huggingface.open_folder(folder)


def test_a_description_survives_json():
  for config in twins.ENCODERS.values():
    assert configs.encoder(json.loads(json.dumps(configs.describe(config)))) == config
  with pytest.raises(ValueError, match="Unknown model family 't5'; this version knows bert"):
    configs.encoder({'family': 't5', 'vocab_size': 9})


SENTENCES = {
  'modules.json': [
    {'path': '', 'type': 'sentence_transformers.models.Transformer'},
    {'path': '1_Pooling', 'type': 'sentence_transformers.models.Pooling'},
    {'path': '2_Normalize', 'type': 'sentence_transformers.models.Normalize'},
  ],
  'sentence_bert_config.json': {'max_seq_length': 12, 'do_lower_case': False},
  '1_Pooling/config.json': {'pooling_mode_cls_token': True, 'pooling_mode_mean_tokens': False},
}


def test_a_folder_of_sentence_transformers_says_how_texts_become_vectors(tmp_path):
  folder = write(tmp_path, 'bert')
  (folder / '1_Pooling').mkdir()
  for file, content in SENTENCES.items():
    (folder / file).write_text(json.dumps(content))
  config, _, _ = load(folder)
  assert (config.pooling, config.normalize, config.max_length) == ('cls', True, 12)


@pytest.mark.reference
@pytest.mark.parametrize('name', twins.ENCODERS)
def test_states_of_what_transformers_saves_are_its_own(name, tmp_path):
  torch = pytest.importorskip('torch', reason="needs the extra 'reference': make reference")
  hf = pytest.importorskip('transformers', reason="needs the extra 'reference': make reference")
  torch.manual_seed(0)
  model = hf.AutoModel.from_config(hf.AutoConfig.for_model(**twin_folders.config(name))).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
  model.save_pretrained(tmp_path)
  _, graph, params = load(tmp_path)
  texts = twins.texts()
  with torch.no_grad():
    expected = model(
      torch.tensor(texts['tokens']), attention_mask=torch.tensor(texts['mask']).long()
    ).last_hidden_state.numpy()
  got = nnx.merge(graph, params).hidden(**texts)
  np.testing.assert_allclose(
    np.asarray(got)[texts['mask']], expected[texts['mask']], atol=2e-5 * np.abs(expected).max()
  )
