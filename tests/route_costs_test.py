"""The program routes by costs that differ by prompt, from a file or from prices of tokens."""

import csv
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from cascades import price_path, route
from cascades.evaluation import router_pool, router_trials, routers
from cascades.evaluation.model_answers import ModelAnswers
from cascades.inference import prompt_routing
from cascades.predictions import outcomes, rows
from cascades.route import RouteOptions
from tests import synthetic_tables

TOPICS = ['add the two numbers {} and {}', 'translate the words {} and {} into French']
STRENGTH = 2.0
PRICES = {'small': {'prompt': 1.0, 'generated': 3.0}, 'large': {'prompt': 5.0, 'generated': 20.0}}


def write_lines(path, records):
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))


@pytest.fixture
def folder(tmp_path):
  """80 prompts on two topics: both models are right, and each is cheap on one topic."""
  rng = np.random.default_rng(0)
  topic = rng.integers(0, 2, 80)
  own = [TOPICS[t].format(*rng.integers(0, 99, 2)) for t in topic]
  cost = 1 + 9 * (topic[:, None] == [1, 0]) + rng.random((80, 2))
  write_lines(tmp_path / 'prompts.jsonl', [{'id': f'p{i}', 'prompt': p} for i, p in enumerate(own)])
  answered = [{'a': 1, 'b': None if i < 3 else 1} for i in range(80)]
  write_lines(
    tmp_path / 'outcomes.jsonl', [{'id': f'p{i}', 'quality': q} for i, q in enumerate(answered)]
  )
  with open(tmp_path / 'costs.csv', 'w') as file:
    table = csv.writer(file)
    table.writerow(['id', 'a', 'b', 'unused'])
    table.writerows([f'p{i}', *row, ''] for i, row in enumerate(cost.tolist()))
  cost[:3, 1] = np.nan
  np.save(tmp_path / 'topic.npy', topic)
  np.save(tmp_path / 'cost.npy', cost)
  return tmp_path


def run(folder, mode, *, answers='outcomes.jsonl', costs='costs.csv', router='r.json',
        prompts='prompts.jsonl', overwrite=False, **options):  # fmt: skip
  files = ModelAnswers(
    str(folder / answers), str(folder / prompts),
    costs if isinstance(costs, dict) else str(folder / costs),
  )  # fmt: skip
  usual = {'clusters': 2, 'strength': STRENGTH, **options}
  route.route(mode, str(folder / router), files, RouteOptions(**usual), overwrite=overwrite)
  return routers.read(folder / router) if mode in ('fit', 'add', 'remove') else None


def pulled(own, prior):
  """Mean of some values, pulled toward a prior."""
  own = own[np.isfinite(own)]
  return (own.sum() + STRENGTH * prior) / (len(own) + STRENGTH)


def expected(router, cost):
  """Estimated costs of a model's validation prompts, by a loop over prompts and clusters."""
  mean, groups, arrays = np.nanmean(cost), router.arrays['groups'], router.arrays
  if 'coarse_groups' in arrays:
    coarse = arrays['coarse_groups']
    above = [pulled(cost[coarse == coarse[i]], mean) for i in range(len(cost))]
    return np.array([pulled(cost[groups == groups[i]], above[i]) for i in range(len(cost))])
  by_group = np.array([pulled(cost[groups == k], mean) for k in range(len(arrays['centroids']))])
  return arrays['memberships'] @ by_group if 'theta' in arrays else by_group[groups]


@pytest.mark.parametrize('method', routers.METHODS)
def test_a_cost_by_prompt_is_estimated_as_the_loss_is(folder, method, caplog):
  caplog.set_level('INFO')
  clusters = 11 if method == 'hierarchical' else 2
  router = run(folder, 'fit', method=method, clusters=clusters)
  assert json.loads((folder / 'r.json').read_text())['version'] == 3
  cost = np.load(folder / 'cost.npy')
  np.testing.assert_allclose(router.pool.cost, np.nanmean(cost, axis=0))
  for model in range(2):
    np.testing.assert_allclose(router.on_validation[1][:, model], expected(router, cost[:, model]))
  assert f'a: cost {router.pool.cost[0]:g}, ' in caplog.text
  assert 'by cluster, 80 of 80' in caplog.text
  topic = np.load(folder / 'topic.npy')
  assert (router.choices(0.01) == topic).mean() > 0.95  # whoever is cheap on the topic
  run(folder, 'choose', price=0.01, prompts='prompts.jsonl')
  with open(folder / 'r.choices.csv') as file:
    chosen = list(csv.DictReader(file))
  vectors = router.embed([*outcomes.texts(folder / 'prompts.jsonl').values()])
  _, estimated = router.predict(vectors)
  models = router.rule(0.01)(vectors)
  np.testing.assert_array_equal(
    [float(r['cost']) for r in chosen], estimated[np.arange(80), models]
  )
  assert f'mean cost {estimated[np.arange(80), models].mean():.6g} at' in caplog.text


def test_a_budget_and_a_policy_count_estimated_costs(folder):
  router = run(folder, 'fit', clusters=8)
  gamma, cost = router.on_validation
  path = price_path.price_path(gamma, cost, 1 - gamma)
  budget = path.cost[[0, -1]].mean()
  run(folder, 'policy', budget=budget)
  policy = json.loads((folder / 'r.policy.json').read_text())
  models = router.choices(policy['price'])
  assert policy['expected_cost'] == pytest.approx(cost[np.arange(80), models].mean())
  assert policy['expected_cost'] <= budget
  prompt = TOPICS[0].format(1, 2)
  choice = prompt_routing.open_policy(folder / 'r.policy.json')([prompt])[0]
  index = router.pool.names.index(choice.model)
  assert choice.cost == router.predict(router.embed([prompt]))[1][0, index]
  with pytest.raises(ValueError, match=r'BUDGET=1e-06 is below .* on average of the cheapest by'):
    run(folder, 'policy', budget=1e-6, overwrite=True)
  run(folder, 'policy', abstention=1.0, overwrite=True)
  nobody = prompt_routing.open_policy(folder / 'r.policy.json')([prompt])[0]
  assert (nobody.model, nobody.cost) == ('', 0)


def test_models_of_one_cost_and_of_many_join_and_leave(folder):
  before = run(folder, 'fit')
  write_lines(
    folder / 'new.jsonl', [{'id': f'p{i}', 'quality': {'new': 1}} for i in range(0, 80, 2)]
  )
  after = run(folder, 'add', answers='new.jsonl', costs={'new': 4})
  assert after.pool.group_cost[:2].tobytes() == before.pool.group_cost.tobytes()
  assert after.pool.group_cost[2].tolist() == [4, 4]
  assert run(folder, 'remove', models=['new']).pool.group_cost.shape == (2, 2)
  plain = run(folder, 'fit', costs={'a': 2, 'b': 3}, overwrite=True)
  assert plain.pool.group_cost is None
  assert json.loads((folder / 'r.json').read_text())['version'] == 1
  write_lines(folder / 'new.jsonl', [{'id': f'p{i}', 'quality': {'new': 1}} for i in range(4)])
  write_lines(folder / 'own.jsonl', [{'id': f'p{i}', 'cost': {'new': i}} for i in range(4)])
  grown = run(folder, 'add', answers='new.jsonl', costs='own.jsonl', predict_missing=True)
  assert grown.pool.group_cost[:2].tolist() == [[2, 2], [3, 3]]
  groups = grown.arrays['groups'][:4]
  own = [pulled(np.arange(4.0)[groups == k], 1.5) for k in range(2)]  # costs are not predicted
  np.testing.assert_allclose(grown.pool.group_cost[2], own)


def test_trials_pay_what_the_answers_cost(folder):
  run(folder, 'evaluate', router='out', trials=3, unseen=1.0, clusters=4)
  by_prompt = json.loads((folder / 'out' / 'routing.json').read_text())['numbers']
  mean = np.nanmean(np.load(folder / 'cost.npy'), axis=0).tolist()
  matrix = outcomes.read(
    folder / 'outcomes.jsonl', prompts=folder / 'prompts.jsonl',
    costs=dict(zip('ab', mean, strict=True)),
  )  # fmt: skip
  draws = router_trials.draws(matrix, trials=3, unseen=1.0, clusters=4, seed=0)
  by_model = router_trials.run(draws, 3, STRENGTH).numbers
  for own, constant in zip(by_prompt['clusters'], by_model['clusters'], strict=True):
    # Both models are right, so that the quality of the best one costs what is cheap by topic.
    assert own['qnc'] < 0.5 < constant.qnc
  assert 'Costs are those that are paid' in (folder / 'out' / 'report.html').read_text()


@pytest.mark.parametrize(
  ('lines', 'sentence'),
  [
    (['{"id": "p0", "cost": {"a": 1}}'], r"156 of 157 answers have no cost, such as that of 'a'"),
    (['{"id": "p0", "cost": {"a": -1}}'], r"line 1: the cost of model 'a' is -1; expected a fin"),
    (['{"id": "p0", "cost": {"a": "x"}}'], "the cost of model 'a' is 'x'"),
    (['{"id": "p0", "cost": 3}'], '`cost` is 3; expected an object by model'),
    (['{"id": "p0", "cost": {"a": 1}}'] * 2, "line 2: the id 'p0' stands in another line too"),
    (['{"model": "a", "cost": 1}'], "1 of 2 models have no cost, such as 'b'"),
  ],
)
def test_costs_that_are_none_are_one_sentence(folder, lines, sentence):
  (folder / 'bad.jsonl').write_text('\n'.join(lines) + '\n')
  with pytest.raises(ValueError, match=sentence):
    run(folder, 'fit', costs='bad.jsonl')


def test_damaged_costs_of_a_router_are_refused(folder):
  router = run(folder, 'fit')
  for damaged in (-router.pool.group_cost, router.pool.group_cost[:, :1]):
    pool = router.pool._replace(group_cost=damaged)
    routers.write(folder / 'bad.json', router._replace(pool=pool))
    with pytest.raises(ValueError, match='the costs by group are no finite numbers of 0 or more'):
      routers.read(folder / 'bad.json')


def write_tables(folder):
  """Tables of two models, whose answers are longer on one topic."""
  topic = np.arange(40) % 2
  for model in PRICES:
    records = [
      rows.build(
        id=str(i), inputs=TOPICS[t].format(i, i), targets=['yes'], answer='yes',
        tokens=[7] * (1 + 5 * t), logprobs=[-0.5] * (1 + 5 * t),
        statistics={'accuracy': [1.0, 1.0]},
        details=rows.Details(columns={'prompt_tokens': 10.0 + i % 3}),
      )
      for i, t in enumerate(topic)
    ]  # fmt: skip
    synthetic_tables.write(folder / model / 'validation', 't', records, split='validation')
  return topic, {model: str(folder / model) for model in PRICES}


def test_the_command_takes_prices_of_tokens_and_the_tokens_of_tables(tmp_path):
  topic, tables = write_tables(tmp_path)
  settings = {
    'MODE': "'fit'", 'ROUTER': f"'{tmp_path / 'r.json'}'", 'TABLES': tables, 'CLUSTERS': 2,
    'COST_AXIS': "'dollars'", 'DOLLARS': PRICES, 'STRENGTH': 0,
  }  # fmt: skip
  command = [sys.executable, '-m', 'cascades.route', '--gin_file=runs/route.gin']
  arguments = [f'--gin.{name}={value}' for name, value in settings.items()]
  done = subprocess.run([*command, *arguments], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  router = routers.read(tmp_path / 'r.json')
  first = router.arrays['groups'][0]  # cluster of the even rows
  read = 10 + np.arange(40) % 3
  for model, (name, price) in enumerate(PRICES.items()):
    paid = price['prompt'] * read + price['generated'] * (1 + 5 * topic)
    assert router.pool.names[model] == name
    assert router.pool.cost[model] == pytest.approx(paid.mean())
    for k, t in ((first, 0), (1 - first, 1)):
      assert router.pool.group_cost[model, k] == pytest.approx(paid[topic == t].mean())


@pytest.fixture
def by_token(tmp_path):
  """Answers and options of a router whose models charge for tokens."""
  _, tables = write_tables(tmp_path)
  answers = ModelAnswers(tables=tables, axis='dollars', dollars=PRICES)
  options = RouteOptions(clusters=2, strength=0.0, price=0.001)
  route.route('fit', str(tmp_path / 'r.json'), answers, options)
  return answers, options


REQUESTS = [TOPICS[0].format(1, 2), TOPICS[1].format(3, 4)]
COUNTS = {'small': [1000, 3], 'large': [90, np.nan]}


def test_a_prompt_is_charged_for_its_own_tokens(tmp_path, by_token):
  assert json.loads((tmp_path / 'r.json').read_text())['version'] == 4
  router = routers.read(tmp_path / 'r.json')
  told = router.pool.tokens.estimate(np.array([len(text) for text in REQUESTS], float))
  assert ((told > 9) & (told < 13)).all()  # the validation prompts have 10 to 12
  vectors = router.embed(REQUESTS)
  _, cost = router.predict(vectors, router.tokens(REQUESTS, COUNTS))
  # Answers have one token on the first topic and six on the second.
  small, large = [1000 * 1 + 3, 3 * 1 + 6 * 3], [90 * 5 + 20, told[1, 1] * 5 + 6 * 20]
  np.testing.assert_allclose(cost.T, [small, large])
  _, by_length = router.predict(vectors, router.tokens(REQUESTS))
  np.testing.assert_allclose(by_length, told * [1, 5] + np.array([[3, 20], [18, 120]]))
  read = 10.0 + np.arange(40) % 3
  paid = np.outer(read, [1, 5]) + np.outer(1 + 5 * (np.arange(40) % 2), [3, 20])
  np.testing.assert_allclose(router.on_validation[1], paid)  # their tokens are recorded
  nobody = router.abstaining(1.0).on_validation[1]
  np.testing.assert_allclose(nobody, np.column_stack([paid, 0 * read]))
  smaller = router.remove(['small'])
  np.testing.assert_allclose(smaller.on_validation[1], paid[:, 1:])


def test_choices_and_policies_take_counts_of_tokens(tmp_path, by_token):
  answers, options = by_token
  lines = [
    {'id': str(i), 'prompt': text, 'prompt_tokens': {
      model: own[i] for model, own in COUNTS.items() if np.isfinite(own[i])
    }} for i, text in enumerate(REQUESTS)
  ]  # fmt: skip
  write_lines(tmp_path / 'requests.jsonl', lines)
  with open(tmp_path / 'requests.csv', 'w') as file:
    table = csv.writer(file)
    table.writerow(['id', 'prompt', *(f'prompt_tokens:{model}' for model in COUNTS)])
    table.writerows(
      [0, REQUESTS[0], 1000, 90] if i == 0 else [1, REQUESTS[1], 3, ''] for i in (0, 1)
    )
  run_on = lambda mode, name: route.route(
    mode, str(tmp_path / 'r.json'), dataclasses.replace(answers, prompts=str(tmp_path / name)),
    options, overwrite=True,
  )  # fmt: skip
  for name in ('requests.jsonl', 'requests.csv'):
    run_on('choose', name)
    with open(tmp_path / 'r.choices.csv') as file:
      chosen = [(row['model'], float(row['cost'])) for row in csv.DictReader(file)]
    assert [model for model, _ in chosen] == ['large', 'small']
    np.testing.assert_allclose([cost for _, cost in chosen], [470, 21])
  run_on('policy', 'requests.jsonl')
  choose = prompt_routing.open_policy(tmp_path / 'r.policy.json')
  assert [c.model for c in choose(REQUESTS, COUNTS)] == ['large', 'small']
  assert [c.model for c in choose(REQUESTS)] == ['small', 'small']
  for wrong, sentence in (
    (12, '`prompt_tokens` is 12; expected an object by model'),
    ({'small': -1}, "the prompt_tokens of model 'small' is -1; expected a number of 0 or more"),
  ):
    write_lines(tmp_path / 'requests.jsonl', [{**lines[0], 'prompt_tokens': wrong}])
    with pytest.raises(ValueError, match=sentence):
      run_on('choose', 'requests.jsonl')


@pytest.mark.parametrize('method', ['clusters', 'hierarchical'])
def test_trials_know_what_prompts_alone_cost(tmp_path, by_token, method):
  matrix = by_token[0].read()
  read = matrix.read_cost
  np.testing.assert_allclose(read[:, 1], 5 * (10.0 + np.arange(40) % 3))
  matrix = matrix._replace(prompt_cost=read, cost=read.mean(axis=0))
  draw = next(router_trials.draws(matrix, trials=1, unseen=1.0, clusters=2, seed=0))
  _, cost = draw.predict(draw.predictor(method, 3.0))
  np.testing.assert_allclose(cost, draw.of(draw.test))
  pool = router_pool.describe(matrix, draw, method=method, strength=3.0)
  for own in pool.joined:
    assert own.few[-1] == pytest.approx(own.every)


def test_damaged_prices_of_tokens_are_refused(tmp_path, by_token):
  router = routers.read(tmp_path / 'r.json')
  tokens = router.pool.tokens
  for damaged, sentence in (
    (tokens._replace(price=-tokens.price), 'are no finite numbers'),
    (tokens._replace(by_group=tokens.by_group[:, :1]), 'prompt tokens of 2 models have the shapes'),
  ):
    pool = router.pool._replace(tokens=damaged)
    routers.write(tmp_path / 'bad.json', router._replace(pool=pool))
    with pytest.raises(ValueError, match=sentence):
      routers.read(tmp_path / 'bad.json')
  arrays = {name: own for name, own in router.arrays.items() if name != 'characters'}
  routers.write(tmp_path / 'bad.json', router._replace(arrays=arrays))
  with pytest.raises(ValueError, match='prices of prompt tokens, and no characters'):
    routers.read(tmp_path / 'bad.json')
