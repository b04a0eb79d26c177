"""Another checkpoint of a served small model: compared on audited rows, promoted, taken back."""

import dataclasses
import json
import os

import numpy as np
import pytest

from cascades.checkpoints import store
from cascades.evaluation import policy as policies
from cascades.evaluation.promotions import Caution, is_held_back
from cascades.predictions import rows as prediction_rows
from cascades.tasks import local
from cascades.tokenizers import vocabularies
from tests import promote_test, synthetic_tables, tiny
from tests.promote_test import DEMANDS, exchanges, journal, record

CAUTION = Caution(every=5000, window=8000)  # no looks at thresholds


def answers(folder, ids, *, agreeing, checkpoint):
  """Table of a checkpoint that agrees with the large model in a share of the prompts."""
  rng = np.random.default_rng(0)
  right = rng.random(len(ids)) < agreeing
  table = [
    prediction_rows.build(
      id=id, inputs='c a t', targets=['?'], answer='yes' if agrees else 'no', tokens=[7],
      logprobs=[-0.1 if agrees else -0.9], statistics={'accuracy': [0]},
    )
    for id, agrees in zip(ids, right, strict=True)
  ]  # fmt: skip
  synthetic_tables.write(folder, 'held_back', table, checkpoint=checkpoint, parameters=1000)
  return str(folder)


def look(root, **changes):
  promote_test.follow(root, caution=CAUTION, small_link=str(root / 'served'), **changes)


@pytest.fixture
def root(tmp_path):
  """A served policy, and 600 audited rows in which its small model is right in 70 %."""
  promote_test.begin(tmp_path)
  record(tmp_path / 'log', exchanges(600, slope=0.6, seed=1))
  os.symlink('runs/small', tmp_path / 'served')
  return tmp_path


def held_back(root):
  look(root, export=str(root / 'audits'))
  lines = (root / 'audits' / 'held_back.jsonl').read_text().splitlines()
  return [json.loads(line)['id'] for line in lines]


def test_audited_prompts_are_exported_to_train_on_and_to_answer(root):
  ids = held_back(root)
  lines = (root / 'audits' / 'train.jsonl').read_text().splitlines()
  train = [json.loads(line) for line in lines]
  assert len(train) + len(ids) == 600
  assert not any(is_held_back(row['id'], CAUTION.held_back) for row in train)
  assert train[0].keys() == {'id', 'inputs', 'targets'}
  assert (train[0]['inputs'], train[0]['targets']) == ('c a t', 'yes')


def test_a_better_checkpoint_is_promoted_with_a_threshold_of_its_own_and_taken_back_later(root):
  before = policies.read(root / 'policy.json')
  table = answers(root / 'new', held_back(root), agreeing=0.97, checkpoint='runs/new')
  look(root, candidate=table)
  after = policies.read(root / 'policy.json')
  assert journal(root)[-2]['decision'] == 'promoted'
  assert 'the other checkpoint gains' in journal(root)[-2]['why']
  assert after.models['small']['checkpoint'] == 'runs/new' == os.readlink(root / 'served')
  assert after.models['large'] == before.models['large']
  assert after.thresholds[0].threshold != before.thresholds[0].threshold
  with pytest.raises(ValueError, match='has answers to 0 of the audited prompts from row 600 on'):
    look(root, candidate=table)  # the rows before say nothing about the model that now serves
  record(root / 'log', exchanges(600, slope=1.5, seed=2))  # which is wrong where it seems sure
  former = answers(root / 'former', held_back(root), agreeing=0.97, checkpoint='runs/small')
  look(root, candidate=former)
  assert journal(root)[-2]['decision'] == 'promoted'
  assert 'breaks its promise of margin' in journal(root)[-2]['why']
  assert os.readlink(root / 'served') == 'runs/small'
  assert policies.read(root / 'policy.json').models['small']['checkpoint'] == 'runs/small'


@pytest.mark.parametrize('agreeing', [0.05, 0.3])
def test_a_checkpoint_that_is_worse_or_no_better_changes_nothing(root, agreeing):
  content = (root / 'policy.json').read_bytes()
  look(
    root,
    candidate=answers(root / 'new', held_back(root), agreeing=agreeing, checkpoint='runs/new'),
    demands=DEMANDS,
  )
  assert journal(root)[-1]['decision'] == 'unchanged'
  assert 'the gain of the other checkpoint' in journal(root)[-1]['why']
  assert (root / 'policy.json').read_bytes() == content
  assert os.readlink(root / 'served') == 'runs/small'


def test_a_kill_between_the_policy_and_the_link_is_made_up_for(root):
  table = answers(root / 'new', held_back(root), agreeing=0.97, checkpoint='runs/new')
  promote_test.follow(root, caution=CAUTION, candidate=table)  # without the link
  assert os.readlink(root / 'served') == 'runs/small'
  look(root)
  assert os.readlink(root / 'served') == 'runs/new'


def test_a_folder_in_the_place_of_the_link_is_left_alone(root):
  os.remove(root / 'served')
  (root / 'served').mkdir()
  with pytest.raises(ValueError, match='is no symbolic link'):
    look(root)


def test_digests_cannot_be_exported(tmp_path):
  promote_test.begin(tmp_path)
  record(tmp_path / 'log', exchanges(20, slope=0.6, seed=1), text=False)
  with pytest.raises(ValueError, match='LOG_TEXT=True'):
    promote_test.follow(tmp_path, export=str(tmp_path / 'audits'))


@pytest.mark.slow
def test_a_checkpoint_that_was_trained_on_audits_is_promoted_by_its_own_answers(root):
  """The chain of real programs: export, train, infer, promote."""
  held_back(root)
  paths = {'train': root / 'audits' / 'train.jsonl', 'test': root / 'audits' / 'held_back.jsonl'}
  task = local.local_jsonl('audits', {split: str(path) for split, path in paths.items()})
  vocabulary = vocabularies.bytes_vocabulary()
  size = -(-vocabulary.size // 8) * 8
  tiny.train(**tiny.settings(
    root, task=task, vocabulary=vocabulary, train_steps=60, save_every=60,
    small=dataclasses.replace(tiny.SMALL, vocab_size=size),
  ))  # fmt: skip
  tiny.infer(
    checkpoint_path=str(root / 'run'), infer_output_dir=str(root / 'tables'), task=task,
    task_feature_lengths=tiny.LENGTHS, batch_size=32, mesh=tiny.one_device,
    records_dir=str(root / 'records'), splits=['test'],
  )  # fmt: skip
  look(root, candidate=str(root / 'tables' / 'test'))
  assert journal(root)[-2]['decision'] == 'promoted'
  assert os.readlink(root / 'served') == str(root / 'run')
  served = policies.read(root / 'policy.json').models['small']
  assert served['checkpoint_identity'] == store.identity(root / 'run', 60)
