"""Audits: a random sample of the requests that all models answer, as tables for calibration."""

import asyncio
import json

import numpy as np

from cascades import deferral
from cascades.calibrate import calibrate
from cascades.evaluation.calibration import Demands
from cascades.evaluation.tables import Tables
from cascades.predictions import __main__ as predictions
from cascades.predictions import shards
from cascades.serving.calls import Call, Conduct
from cascades.serving.cascade import ServedCascade
from cascades.serving.exchanges import Question
from cascades.serving.legs import Member
from cascades.serving.metering import Log, LogOptions
from tests import synthetic_tables
from tests.serving.fake_models import rule
from tests.serving.replayed_models import Replayed

SHARE, SIZE, THRESHOLD = 0.4, 300, 0.25


def served(directory, tables, draws):
  """Log of a server that answered the prompts of tables."""
  log = Log(directory, LogOptions(text=True))
  cascade = ServedCascade(
    {role: Member(Replayed(role, table)) for role, table in tables.items()},
    rule(THRESHOLD),
    conduct=Conduct(audit_share=SHARE),
    record=log.record,
    draw=iter(draws).__next__,
  )

  async def ask_all():
    for name, prompt in zip(tables['small'].ids, tables['small'].inputs, strict=True):
      async for _ in cascade.answer(Call(name, Question(prompt, max_tokens=16))):
        pass

  asyncio.run(ask_all())
  log.close()


def imported(directory, tables, filtered):
  """Tables of the log of both models, by a filter."""
  labels = directory / 'labels.jsonl'
  own = tables['small']
  rows = [
    {'id': name, 'targets': [*targets], 'inputs': ''}
    for name, targets in zip(own.ids, own.targets, strict=True)
  ]
  labels.write_text('\n'.join(map(json.dumps, rows)))
  for role in tables:
    (path,) = (directory / 'log' / role).glob('*.jsonl')
    target = directory / filtered / role / 'validation'
    words = ['import', '--format=log', f'--filter={filtered}', f'--labels={labels}', '--task=a']
    assert not predictions.main(
      [*words, '--parameters=1000', '--metric=accuracy', str(path), str(target)]
    )
  return [shards.read(directory / filtered / role / 'validation')[0] for role in tables]


def test_calibration_runs_on_exactly_the_audited_rows_and_other_rows_are_a_biased_sample(tmp_path):
  tables = {
    role: synthetic_tables.table('a', size=SIZE, skill=skill, seed=seed)
    for seed, (role, skill) in enumerate((('small', 0.3), ('large', 2.0)))
  }
  draws = np.random.default_rng(0).random(SIZE).tolist()
  served(tmp_path / 'log', tables, draws)
  small, large = imported(tmp_path, tables, 'audit')
  audited = [name for name, draw in zip(tables['small'].ids, draws, strict=True) if draw < SHARE]
  assert set(small.ids) == set(large.ids) == set(audited)
  policy = calibrate(
    Tables(
      {'small': str(tmp_path / 'audit/small')}, str(tmp_path / 'audit/large'), split='validation'
    ),
    str(tmp_path / 'policy.json'),
    Demands(quality=0.4),
  )
  assert policy.thresholds[0].rows == len(audited)
  quality = [table.statistics['accuracy'][:, 0].mean() for table in (small, tables['small'])]
  assert abs(quality[0] - quality[1]) < 3 * np.sqrt(0.25 / len(audited))
  # What both answered without a draw is what was deferred, and no sample of all.
  both, _ = imported(tmp_path, tables, 'both')
  deferred = deferral.DECIDERS['average'].score(both) >= THRESHOLD
  rest = [row for row, name in enumerate(both.ids) if name not in audited]
  assert deferred[rest].all()
  rates = [
    (deferral.DECIDERS['average'].score(table) >= THRESHOLD).mean()
    for table in (small, tables['small'])
  ]
  assert abs(rates[0] - rates[1]) < 3 * np.sqrt(0.25 / len(audited))
  assert 0.2 < rates[1] < 0.8
