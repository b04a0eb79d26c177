"""Speculators of tiny models, compiled once for a sweep; numbers of drafts that follow counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import speculative
from cascades.inference import answers, draft_planner, speculation, speculator
from cascades.inference.draft_planner import DraftPlanner, StepCosts
from cascades.inference.speculation import CallCounts
from cascades.inference.trained_model import TrainedModel
from cascades.runtime import partitioning
from cascades.tokenizers import vocabularies
from cascades.types import Prompt
from tests import testing

VOCABULARY = vocabularies.symbols([chr(97 + i) for i in range(20)])
MAX_TOKENS = 6
CHEAP, DEAR = StepCosts(0.1, (1.0,) * 6), StepCosts(2.0, (1.0,) * 6)


@functools.cache
def model(name, vocabulary=VOCABULARY):
  config = testing.CONFIGS[name]
  return TrainedModel(
    *testing.split(testing.build(config)), config.vocab_size, vocabulary, config.architecture, {}
  )


@pytest.fixture(scope='module', autouse=True)
def one_device():
  for name in testing.CONFIGS:  # built without a mesh, whose axes their layers do not name
    model(name)
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    yield


def prompts():
  return Prompt(np.asarray(testing.tokens((2, 5))), np.array([5, 3], np.int32))


def test_a_sweep_over_alphas_compiles_one_program():
  small, large = model('decoder'), model('everything')
  pair = speculator.Speculator(small, large, 'opt', gamma=2, max_tokens=MAX_TOKENS)
  results = {alpha: pair.speculate(prompts(), np.arange(2), alpha) for alpha in (-9.0, 0.1, 9.0)}
  assert pair._speculate._cache_size() == 1
  for alpha, alone in ((-9.0, large), (9.0, small)):
    generator = answers.Generator(alone, MAX_TOKENS)
    expected = generator.generate(prompts(), np.arange(2))
    np.testing.assert_array_equal(results[alpha].answer.tokens, expected.tokens)
  undrafted = speculator.Speculator(small, large, 'lossless', gamma=0, max_tokens=MAX_TOKENS)
  plain = undrafted.speculate(prompts(), np.arange(2))
  np.testing.assert_array_equal(plain.answer.tokens, results[-9.0].answer.tokens)
  np.testing.assert_array_equal(plain.counts.large_calls, plain.answer.mask.sum(1))
  with pytest.raises(ValueError, match="alpha=nan of rule 'opt' must be a finite number"):
    pair.speculate(prompts(), np.arange(2), float('nan'))
  table = pair.answer(prompts(), np.arange(2), 9.0)
  assert set(table.numbers) == {'accepted', 'rejected', 'small_calls', 'large_calls'}
  assert table.by_token['drafted'][:, 1].all()


def test_planned_drafts_compile_nothing_along_a_run(monkeypatch):
  models = model('decoder'), model('everything')
  pair = speculator.Speculator(*models, 'lossless', gamma=2, max_tokens=MAX_TOKENS, costs=CHEAP)
  pair.compile(prompts(), np.arange(2))
  compiled = lambda: (pair._speculate._cache_size(), pair._large._generate._cache_size())
  assert compiled() == (2, 1)
  monkeypatch.setattr(draft_planner, 'TRIALS', draft_planner.RECENT + 1)  # never timed enough
  ran, run = set(), pair._in_blocks
  monkeypatch.setattr(
    pair, '_in_blocks', lambda gamma, *rest: (ran.add(gamma), run(gamma, *rest))[1]
  )
  for acceptance in (0.0, 0.3, 1.0, 1.0) * 2:  # ways are tried by turns
    pair.planner.accepted, pair.planner.rejected = 100 * acceptance, 100 * (1 - acceptance)
    pair.planner._settle()
    pair.speculate(prompts(), np.arange(2))
  assert ran == {0, 1, 2}
  assert compiled() == (2, 1)


@pytest.mark.parametrize(
  ('name', 'vocabulary', 'reason'),
  [
    (
      't5',
      VOCABULARY,
      'small model is encoder_decoder and the large one decoder_only: models that dec',
    ),
    ('decoder', vocabularies.symbols(['a']), 'The small model has the vocabulary .* of 4 t'),
  ],
)
def test_models_that_cannot_decode_together_are_refused(name, vocabulary, reason):
  small = model(name)._replace(vocabulary=vocabulary)
  for program in (speculator.Speculator, speculator.TokenCascade):
    options = {'gamma': 1} if program is speculator.Speculator else {}
    with pytest.raises(ValueError, match=reason):
      program(small, model('everything'), 'chow', max_tokens=3, **options)


@pytest.mark.parametrize(
  ('rule', 'gamma', 'reason'),
  [('best', 1, "'best' is no rule"), ('opt', -1, 'gamma=-1 must be a whole number at least 0')],
)
def test_numbers_out_of_range_are_refused(rule, gamma, reason):
  two = model('decoder'), model('everything')
  with pytest.raises(ValueError, match=reason):
    speculator.Speculator(*two, rule, gamma=gamma, max_tokens=3)


def counts(accepted, rejected):
  return CallCounts(np.array([accepted]), np.array([rejected]), np.zeros(1), np.zeros(1))


def batch(accepted, rejected, tokens=4):
  """Answers of a batch, of which a planner reads the counts and the longest."""
  zeros = np.zeros((1, tokens))
  answer = answers.Generation(zeros, zeros, zeros == 0)
  return speculation.Speculation(answer, zeros, zeros == 1, counts(accepted, rejected))


def test_planned_drafts_are_the_best_at_the_share_that_is_accepted():
  planner = DraftPlanner(CHEAP, lossless=True)
  assert planner.acceptance == pytest.approx(draft_planner.START)
  for accepted, rejected in ((0, 400), (300, 100), (2000, 0)):
    for _ in range(60):  # until earlier batches are forgotten
      planner.update(batch(accepted, rejected), None)
    share = accepted / (accepted + rejected)
    assert planner.acceptance == pytest.approx(share, abs=0.01)
    expected = speculative.best_gamma(
      round(share, 2), 0.1, most=5, least_saving=draft_planner.SAVING
    )
    assert planner.drafts == expected
  assert DraftPlanner(CHEAP, lossless=False).lengths.min() == 1
  plan = planner.plan(planner.drafts)
  assert plan.accepted + plan.rejected == pytest.approx(draft_planner.PRIOR)


@pytest.mark.parametrize(('drafted', 'drafts'), [(2.0, 0), (0.9, 4)])
def test_measured_time_decides_whether_drafts_pay(drafted, drafts):
  """All drafts are accepted and steps promise much; the clock says `drafted` against 1."""
  planner = DraftPlanner(CHEAP, lossless=True)
  taken = []
  for number in range(2 * draft_planner.RETRY):
    taken.append(planner.next_drafts())
    tokens = 1 + number % 7  # of which the time is in proportion
    seconds = tokens * (drafted if taken[-1] else 1.0)
    answered = batch(3, 1, tokens)
    planner.update(answered if taken[-1] else answered.answer, seconds)
  trials = 2 * draft_planner.TRIALS
  assert sum(x > 0 for x in taken[:trials]) == draft_planner.TRIALS
  assert (planner.drafts > 0) == (drafts > 0)
  others = [x for x in taken[trials:] if (x > 0) != (drafts > 0)]
  assert len(others) == 2


def test_a_trial_runs_the_program_of_planned_drafts():
  """Its plan has the shape of theirs, so that nothing is compiled, and drafts at any estimate."""
  planner = DraftPlanner(CHEAP, lossless=True)
  planned, none = planner.plan(planner.drafts), counts(0, 0)
  planner.paces[True].extend([2.0] * draft_planner.TRIALS)
  planner.paces[False].extend([1.0] * draft_planner.TRIALS)
  planner._settle()
  trial = planner.plan(3)
  assert not planner.drafts
  assert [x.shape for x in map(np.asarray, trial)] == [x.shape for x in map(np.asarray, planned)]
  assert trial.drafts(none).tolist() == [3]


def test_batches_without_a_clock_are_drafted_as_steps_promise():
  planner = DraftPlanner(CHEAP, lossless=True)
  for _ in range(20):
    assert planner.next_drafts() > 0
    planner.update(batch(9, 1), None)


@pytest.fixture
def gammas(monkeypatch):
  """Most drafts of each batch; nothing is compiled or decoded."""
  gammas = []
  zeros = np.zeros((2, 3))
  answer = answers.Generation(zeros, zeros, np.ones((2, 3), bool))

  def generate(pair, prompts, *, max_len, gamma, plan, **_):
    gammas.append(gamma)
    none = np.zeros(2)
    return speculation.Speculation(answer, zeros, zeros, CallCounts(none, none, none, none))

  monkeypatch.setattr(speculation, 'generate', generate)
  alone = lambda self, prompts, row_ids: gammas.append(0) or answer
  monkeypatch.setattr(answers.Generator, 'generate', alone)
  monkeypatch.setattr(jax, 'jit', lambda function, **_: function)
  return gammas


def lossless(costs):
  two = model('decoder'), model('everything')
  return speculator.Speculator(*two, 'lossless', gamma=5, max_tokens=3, costs=costs)


def test_the_first_batch_of_a_program_is_compiled_and_not_timed(gammas):
  pair, seen = lossless(CHEAP), []
  for _ in range(4):
    pair.speculate(prompts(), np.arange(2))
    seen.append([len(paces) for paces in pair.planner.paces.values()])
  assert [gamma > 0 for gamma in gammas] == [True, True, False, False]
  assert seen == [[0, 0], [1, 0], [1, 0], [1, 1]]


def test_programs_that_were_compiled_before_are_timed_from_the_first_batch_on(gammas):
  pair = lossless(CHEAP)
  pair.compile(prompts(), np.arange(2))
  assert gammas == pair.blocks == [0, 1, 2, 4, 5]
  assert not any(pair.planner.paces.values())
  for _ in range(2):
    pair.speculate(prompts(), np.arange(2))
  assert [len(paces) for paces in pair.planner.paces.values()] == [1, 1]


def test_where_drafts_do_not_pay_the_large_model_decodes_alone_and_drafts_are_tried_again(gammas):
  pair = lossless(DEAR)
  for _ in range(2 * draft_planner.RETRY):
    result = pair.speculate(prompts(), np.arange(2))
    if not gammas[-1]:
      assert result.counts.large_calls.tolist() == [3, 3]
      assert np.isnan(result.small_logprobs).all()
  assert gammas == ([0] * (draft_planner.RETRY - 1) + [1]) * 2
  assert not pair.planner.paces[False]  # their times decide nothing


def test_where_drafts_were_slower_only_the_batches_before_a_trial_are_timed(gammas, monkeypatch):
  pair = lossless(CHEAP)
  pair.compile(prompts(), np.arange(2))
  planner, updates = pair.planner, []
  planner.paces[True].extend([2.0] * draft_planner.TRIALS)
  planner.paces[False].extend([1.0] * draft_planner.TRIALS)
  planner._settle()
  monkeypatch.setattr(planner, 'update', lambda *_: updates.append(planner.batches))
  for _ in range(draft_planner.RETRY):
    pair.generate(prompts(), np.arange(2))
  assert updates == [*range(draft_planner.RETRY - draft_planner.RECENT, draft_planner.RETRY), 0]
  planner.paces[True].extend([0.5] * draft_planner.RECENT)
  planner._settle()  # drafts pay now, and the trial is of the large model alone
  updates.clear()
  for _ in range(draft_planner.RETRY):
    pair.generate(prompts(), np.arange(2))
  assert len(updates) == draft_planner.RETRY
  assert gammas[-1] == 0 < gammas[-2]


def test_a_planner_without_drafts_tries_none(gammas):
  two = model('decoder'), model('everything')
  pair = speculator.Speculator(*two, 'lossless', gamma=0, max_tokens=3, costs=CHEAP)
  for _ in range(draft_planner.RETRY + 1):
    pair.speculate(prompts(), np.arange(2))
  assert set(gammas) == {0}


def test_answers_of_the_large_model_alone_are_those_of_a_program_without_drafts(gammas):
  mask = np.arange(4) < np.array([[3], [0], [4]])
  answer = answers.Generation(np.ones(mask.shape, int), np.zeros(mask.shape), mask)
  pair = lossless(DEAR)
  pair._large.generate = lambda *_: answer
  own = pair.speculate(prompts(), np.arange(3))
  expected = speculation.undrafted(jax.tree.map(jnp.asarray, answer))
  jax.tree.map(np.testing.assert_array_equal, own, expected)
  types = lambda given: [x.dtype for x in jax.tree.leaves(given._replace(answer=None))]
  assert types(own) == types(expected)


def test_answers_alone_are_those_of_both_models_and_have_no_columns():
  """With drafts, and without: then they are what the large model's own generator gives."""
  two = model('decoder'), model('everything')
  for gamma in (2, 0):
    pair = speculator.Speculator(*two, 'lossless', gamma=gamma, max_tokens=MAX_TOKENS)
    answer = pair.generate(prompts(), np.arange(2))
    expected = pair.speculate(prompts(), np.arange(2)).answer
    jax.tree.map(np.testing.assert_array_equal, answer, expected)
  with pytest.raises(ValueError, match='alpha=nan'):
    pair.generate(prompts(), np.arange(2), float('nan'))
  pair._large.generate = lambda *_: answer  # nothing is made of it, which would take time
  assert pair.generate(prompts(), np.arange(2)) is answer


def test_programs_are_of_powers_of_two_drafts_and_of_the_most(gammas):
  for share in (0.5, 0.65, 0.99):  # 2, 3 and 5 drafts
    pair = lossless(CHEAP)
    for _ in range(60):  # until earlier batches are forgotten
      pair.planner.update(batch(400 * share, 400 - 400 * share), None)
    pair.speculate(prompts(), np.arange(2))
  assert gammas == [2, 4, 5]
  needed = draft_planner.DraftPlanner(CHEAP, lossless=False)
  assert needed.blocks[0] == 1  # whose tokens need both models


def test_a_pair_without_a_planner_has_the_program_of_its_drafts_alone(gammas):
  pair = lossless(None)
  pair.compile(prompts(), np.arange(2))
  pair.speculate(prompts(), np.arange(2))
  assert gammas == [5, 5]
