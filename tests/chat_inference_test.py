"""A chat model from its package to answers: plain JSON lines in, text and log-probabilities out."""

import json

import numpy as np
import pytest

from cascades.predictions import shards
from cascades.tasks import chats, local
from tests import smollm2, tiny

pytestmark = pytest.mark.slow

QUESTIONS = [
  'What is the capital of France? Answer in one word.',
  'Write the plural of the word "child".',
  'Сколько будет два плюс два?',
]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return smollm2.converted(tmp_path_factory.mktemp('smollm2'))


def ask(model, folder, prompts, questions=QUESTIONS):
  lines = [json.dumps({'inputs': question}) for question in questions]
  (folder / 'rows.jsonl').write_text('\n'.join(lines) + '\n')
  task = local.local_jsonl('questions', {'test': folder / 'rows.jsonl'}, targets_key=None)
  tiny.infer(
    checkpoint_path=str(model),
    infer_output_dir=str(folder / 'answers'),
    task=task,
    task_feature_lengths={'inputs': 128, 'targets': 24},
    prompts=prompts,
    batch_size=4,
    mesh=tiny.one_device,
    records_dir=str(folder / 'records'),
  )
  (table,) = shards.read(folder / 'answers' / 'test')
  return table


def test_a_question_is_answered_with_confidence(model, tmp_path):
  table = ask(model, tmp_path, chats.chat)
  answers = dict(zip(QUESTIONS, table.predictions, strict=True))
  print(answers)
  assert 'Paris' in answers[QUESTIONS[0]]
  assert 'children' in answers[QUESTIONS[1]].lower()
  assert not any('<|im_' in answer for answer in answers.values())
  logprobs = table.logprobs[table.mask]
  assert np.isfinite(logprobs).all()
  assert (logprobs <= 0).all()
  assert ' chat ' in table.manifest['definition']


def test_without_its_template_the_model_goes_on_with_the_text(model, tmp_path):
  table = ask(model, tmp_path, chats.continuation, ['The capital of France is'])
  print(table.predictions)
  assert table.predictions[0].lstrip().startswith('Paris')
