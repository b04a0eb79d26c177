"""Cost honesty: a table replayed through the cascade costs and answers as evaluation says."""

import asyncio

import numpy as np
import pytest

from cascades import curves, deferral, metrics
from cascades.costs import Prices
from cascades.serving.calls import Call, Conduct
from cascades.serving.cascade import ServedCascade
from cascades.serving.exchanges import Piece, Question, Token
from cascades.serving.legs import Member
from tests import synthetic_tables
from tests.serving.fake_models import rule

SMALL_PRICES, LARGE_PRICES = Prices(1e-7, 2e-7), Prices(3e-6, 9e-6)
PROMPT_TOKENS = 7


class Replayed:
  """A model that answers the prompts of a table as the table says."""

  def __init__(self, name, table):
    self.name, self._table = name, table
    self._rows = {prompt: row for row, prompt in enumerate(table.inputs)}
    self._starts = np.cumsum(table.lengths) - table.lengths

  async def answer(self, question):
    row, table = self._rows[question.prompt], self._table
    length = int(table.lengths[row])
    logprobs = table.token_logprobs[self._starts[row] : self._starts[row] + length]
    for number, logprob in enumerate(logprobs):
      is_last = number == length - 1
      yield Piece(
        table.predictions[row] if is_last else '',
        (Token(b'x', float(logprob)),),
        'stop' if is_last else None,
        prompt_tokens=PROMPT_TOKENS,
        generated_tokens=number + 1,
      )


def replay(small, large, threshold, name, *, stop_early):
  """Answers to all prompts of the tables, and the exchanges."""
  records = []
  cascade = ServedCascade(
    {
      'small': Member(Replayed('small', small), SMALL_PRICES),
      'large': Member(Replayed('large', large), LARGE_PRICES),
    },
    rule(threshold, name),
    conduct=Conduct(stop_early=stop_early),
    record=records.append,
  )

  async def ask_all():
    texts = []
    for prompt in small.inputs:
      call = Call('id', Question(prompt, max_tokens=int(small.lengths.max())))
      events = [event async for event in cascade.answer(call)]
      texts.append(''.join(event.text for event in events[:-1]))
    return texts

  return asyncio.run(ask_all()), records


@pytest.mark.parametrize('name', ['average', 'quantile 0.4'])
def test_quality_deferrals_and_dollars_are_those_of_evaluation(name):
  small, large = (synthetic_tables.table('t', size=60, skill=s, seed=s) for s in (0, 2))
  score = deferral.DECIDERS[name].score(small)
  prices = [
    prices.charge(np.full(60, float(PROMPT_TOKENS)), table.lengths.astype(float))
    for prices, table in ((SMALL_PRICES, small), (LARGE_PRICES, large))
  ]
  judged = [table.statistics['accuracy'] for table in (small, large)]
  cost = curves.cost_by_rate(score, *prices)
  curve = curves.deferral_curve(score, *judged, metrics.accuracy.finalize, cost)
  for point in (0, len(curve.threshold) // 3, -1):
    texts, records = replay(small, large, curve.threshold[point], name, stop_early=False)
    statistics = [
      metrics.accuracy.statistics(targets, text)
      for targets, text in zip(small.targets, texts, strict=True)
    ]
    quality = metrics.accuracy.finalize(np.sum(statistics, axis=0, keepdims=True))
    assert quality == pytest.approx(curve.quality[point])
    assert np.mean([r.deferred for r in records]) == curve.deferral_rate[point]
    dollars = [sum(leg.dollars for leg in r.legs) for r in records]
    assert np.mean(dollars) == pytest.approx(curve.cost[point], rel=1e-12)
    assert [r.score for r in records] == score.tolist()
    early, cut = replay(small, large, curve.threshold[point], name, stop_early=True)
    assert early == texts
    assert sum(r.legs[0].generated_tokens for r in cut) <= small.lengths.sum()
