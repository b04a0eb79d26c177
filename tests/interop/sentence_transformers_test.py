from __future__ import annotations

import re

import pytest

from cascades.checkpoints import store
from cascades.interop import sentence_transformers

POOLING = '1_Pooling/config.json'


def options(*kinds, pooling=None, limits=None, prompts=None):
  steps = [
    {'path': f'{i}_{variant}' if i else '', 'type': f'sentence_transformers.models.{variant}'}
    for i, variant in enumerate(kinds)
  ]
  folder = {
    'modules.json': steps,
    POOLING: pooling or {},
    'sentence_bert_config.json': limits or {},
    'config_sentence_transformers.json': prompts or {},
  }
  return sentence_transformers.options(folder.__getitem__)


STEPS = ('Transformer', 'Pooling')
SWITCHES = {
  'pooling_mode_cls_token': False,
  'pooling_mode_mean_tokens': False,
  'pooling_mode_max_tokens': False,
  'word_embedding_dimension': 384,
  'include_prompt': True,
}


def test_an_encoder_alone_is_pooled_by_its_mean():
  assert sentence_transformers.options(lambda _: {}) == {'pooling': 'mean', 'normalize': False}


@pytest.mark.parametrize(
  ('pooling', 'expected'),
  [
    (SWITCHES | {'pooling_mode_mean_tokens': True}, 'mean'),
    (SWITCHES | {'pooling_mode_cls_token': True}, 'cls'),
    ({'pooling_mode': 'cls'}, 'cls'),
    ({}, 'mean'),
  ],
)
def test_the_way_of_pooling_is_read(pooling, expected):
  assert options(*STEPS, pooling=pooling) == {'pooling': expected, 'normalize': False}


def test_vectors_are_normalized_and_texts_cut_if_the_files_say_so():
  actual = options(*STEPS, 'Normalize', limits={'max_seq_length': 256, 'do_lower_case': False})
  assert actual == {'pooling': 'mean', 'normalize': True, 'max_length': 256}
  assert 'max_length' not in options(*STEPS, limits={'max_seq_length': None})


@pytest.mark.parametrize(
  ('settings', 'words'),
  [
    (
      {'pooling': SWITCHES | {'pooling_mode_max_tokens': True}},
      "pooling_mode=['max_tokens'] in 1_",
    ),
    (
      {'pooling': {'pooling_mode_cls_token': True, 'pooling_mode_mean_tokens': True}},
      "pooling_mode=['cls_token', 'mean_tokens']",
    ),
    ({'pooling': {'pooling_mode': 'lasttoken'}}, "pooling_mode=['lasttoken']"),
    ({'limits': {'do_lower_case': True}}, 'do_lower_case=True in sentence_bert_config.json'),
    ({'prompts': {'default_prompt_name': 'query'}}, "default_prompt_name='query'"),
  ],
)
def test_an_option_that_is_not_supported_is_named(settings, words):
  with pytest.raises(store.CheckpointError, match=re.escape(words)):
    options(*STEPS, **settings)


@pytest.mark.parametrize('kinds', [('Transformer', 'Pooling', 'Dense'), ('Transformer',)])
def test_steps_that_are_not_computed_are_named(kinds):
  with pytest.raises(
    store.CheckpointError, match=re.escape(f'type={list(kinds)!r} in modules.json')
  ):
    options(*kinds)
