"""Tiny twins of published models: their configurations, and inputs from NumPy alone.

`make.py` gives `testing.weights` to Hugging Face's implementations and stores their logits.
"""

from __future__ import annotations

import pathlib

import numpy as np

from cascades.models import bert, decoder, t5

FOLDER = pathlib.Path(__file__).parent
VOCAB, WIDTH, SOURCE, TARGET = 20, 16, 18, 14

_T5 = {
  'vocab_size': VOCAB,
  'emb_dim': WIDTH,
  'num_heads': 2,
  'num_encoder_layers': 2,
  'num_decoder_layers': 3,
  'head_dim': 6,
  'mlp_dim': 24,
  'relative_attention_num_buckets': 8,
  'relative_attention_max_distance': 12,
}
_DECODER = {
  'vocab_size': VOCAB,
  'emb_dim': WIDTH,
  'num_heads': 4,
  'num_kv_heads': 2,
  'num_layers': 2,
  'head_dim': 6,
  'mlp_dim': 24,
}
_GEMMA = {
  'mlp_activations': ('gelu', 'linear'),
  'embedding_scale': WIDTH**0.5,
  'norm_offset': 1.0,
}

CONFIGS: dict[str, t5.T5Config | decoder.DecoderConfig] = {
  't5_1_1': t5.T5Config(**_T5),
  't5_1_0': t5.T5Config(**_T5, mlp_activations=('relu',), logits_via_embedding=True),
  'llama': decoder.DecoderConfig(
    **_DECODER,
    logits_via_embedding=False,
    norm_eps=1e-5,
    rope_theta_pattern=(50.0,),
    rope_llama3=(8.0, 1.0, 4.0, 16),
  ),
  'qwen2': decoder.DecoderConfig(**_DECODER, qkv_bias=True),
  'qwen3': decoder.DecoderConfig(**_DECODER, qk_norm=True, rope_theta_pattern=(1e6,)),
  'gemma': decoder.DecoderConfig(**_DECODER, **_GEMMA),
  'gemma2': decoder.DecoderConfig(
    **_DECODER,
    **_GEMMA,
    post_norms=True,
    query_scale=10**-0.5,
    attention_softcap=2.0,
    logit_softcap=3.0,
    window_pattern=(4, None),
  ),
  'gemma3': decoder.DecoderConfig(
    **(_DECODER | {'num_layers': 4}),
    **_GEMMA,
    post_norms=True,
    qk_norm=True,
    query_scale=10**-0.5,
    window_pattern=(5, 5, None),
    rope_theta_pattern=(100.0, 100.0, 1e4),
    rope_factor_pattern=(1.0, 1.0, 8.0),
  ),
}


_ENCODER = {
  'vocab_size': VOCAB,
  'emb_dim': WIDTH,
  'num_heads': 2,
  'num_layers': 2,
  'mlp_dim': 24,
  'max_length': 20,
}
ENCODERS: dict[str, bert.BertConfig] = {
  'bert': bert.BertConfig(**_ENCODER, num_positions=20),
  'mpnet': bert.BertConfig(
    **_ENCODER,
    num_positions=22,
    first_position=2,
    num_segments=0,
    relative_attention_num_buckets=32,
    norm_eps=1e-5,
  ),
}


def inputs(config: t5.T5Config | decoder.DecoderConfig) -> dict[str, np.ndarray]:
  """Two rows; the second prompt of an encoder-decoder is padded."""
  random = np.random.RandomState(0)
  rows = {'inputs': random.randint(3, VOCAB, (2, TARGET))}
  if config.architecture == 'encoder_decoder':
    rows['encoder'] = random.randint(3, VOCAB, (2, SOURCE)) * (np.arange(SOURCE) < [[SOURCE], [11]])
  return rows


def texts() -> dict[str, np.ndarray]:
  """Two rows, the second padded, for an encoder."""
  tokens = inputs(CONFIGS['t5_1_1'])['encoder']
  return {'tokens': tokens, 'mask': tokens != 0}


def load(name: str) -> dict[str, np.ndarray]:
  with np.load(FOLDER / f'{name}.npz', allow_pickle=False) as arrays:
    return dict(arrays)
