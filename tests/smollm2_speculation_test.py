"""Speculative decoding of a pretrained chat model: SmolLM2-135M, and pruned ones that draft."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cascades import prune
from cascades.data.corpus import Data
from cascades.inference import speculation, trained_model
from cascades.inference.answers import Generator
from cascades.inference.trained_model import Checkpoint
from cascades.interop import companions
from cascades.models import pruning
from cascades.runtime import partitioning
from cascades.target_distributions import RULES
from cascades.tasks import chats, local
from tests import smollm2, tiny

pytestmark = pytest.mark.slow

MOST, TOKENS = 8, 12
QUESTIONS = [
  'What is the capital of France? Answer in one word.',
  'Natalia sold 48 clips in April and half as many in May. How many did she sell?',
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('smollm2')
  smollm2.converted(folder / 'large')
  lines = [json.dumps({'inputs': question}) for question in QUESTIONS]
  (folder / 'rows.jsonl').write_text('\n'.join(lines) + '\n')
  return folder


@pytest.fixture(scope='module')
def on_mesh():
  with partitioning.use(tiny.one_device()):
    yield


def load(path):
  return trained_model.load(Checkpoint(str(path), precision='float32'), rules=partitioning.RULES)


@pytest.fixture(scope='module')
def large(folder, on_mesh):
  return load(folder / 'large')


@pytest.fixture(scope='module')
def prompts(folder, large):
  """The questions in the model's chat format."""
  task = local.local_jsonl('questions', {'test': folder / 'rows.jsonl'}, targets_key=None)
  data = Data(
    task=chats.chat(task, folder / 'large' / companions.FOLDER),
    lengths={'inputs': 64, 'targets': TOKENS},
    batch_size=len(QUESTIONS),
    records_dir=str(folder / 'records'),
  )
  corpus = data.corpus(large.vocabulary, large.architecture)
  (records,) = corpus.open('test').per_task
  (bucket,) = corpus.buckets(records, range(len(QUESTIONS)), batch_size=len(QUESTIONS))
  return corpus.prompts(records, bucket, batch_size=len(QUESTIONS))


@pytest.mark.parametrize('head', [1, 27])
def test_lossless_greedy_answers_are_the_large_models_at_every_number_of_drafts(
  folder, large, prompts, head
):
  """A drafter of two layers of thirty, which is always wrong, and one of 28, which is not."""
  pruned = folder / f'pruned{head}'
  layers = functools.partial(pruning.ends, head=head, tail=1)
  devices = partitioning.Devices(mesh=tiny.one_device)
  prune.prune(str(folder / 'large'), str(pruned), layers=layers, devices=devices)
  small = load(pruned)

  @jax.jit
  def both(params, plan):
    models = map(nnx.merge, (small.graph, large.graph), params)
    pair = speculation.SpeculativePair(*models, RULES['lossless'].target)
    return speculation.generate(
      pair, prompts, max_len=TOKENS, eos_id=large.vocabulary.eos_ids, gamma=MOST, plan=plan
    )

  alone = Generator(large, TOKENS).generate(prompts, np.arange(len(QUESTIONS)))
  passed = []
  for gamma in range(1, MOST + 1):
    actual = both((small.params, large.params), speculation.always(jnp.asarray(gamma)))
    np.testing.assert_array_equal(actual.answer.tokens, alone.tokens)
    np.testing.assert_array_equal(actual.answer.mask, alone.mask)
    np.testing.assert_allclose(actual.answer.logprobs, alone.logprobs, atol=1e-3)
    accepted, rejected = (int(count.sum()) for count in actual.counts[:2])
    assert rejected > 0
    passed.append(accepted)
  assert passed == sorted(passed)
  assert (passed[0] > 0) == (head == 27)
