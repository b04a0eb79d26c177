"""The program routes among models that join and leave: files, plans, trials, and bad input."""

import csv
import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cascades import route
from cascades.evaluation import routers
from cascades.evaluation.model_answers import ModelAnswers
from cascades.inference import encoders, prompt_routing
from cascades.predictions import outcomes, rows, shards, sidecars
from cascades.price_path import choose
from cascades.route import RouteOptions
from tests import synthetic_tables
from tests.interop import encoders_test

TOPICS = ['add the two numbers {} and {}', 'translate the words {} and {} into French']
FREE = {'adds': 1, 'translates': 2, 'bad': 0}


@pytest.fixture
def folder(tmp_path):
  """Files of `write`."""
  write(tmp_path)
  return tmp_path


def write(folder):
  """Write 80 prompts on two topics, of which each of two models knows one, and a third none."""
  rng = np.random.default_rng(0)
  topic = rng.integers(0, 2, 80)
  prompts = [TOPICS[t].format(*rng.integers(0, 99, 2)) for t in topic]
  with open(folder / 'prompts.jsonl', 'w') as file:
    for index, text in enumerate(prompts):
      file.write(json.dumps({'id': f'p{index}', 'prompt': text}) + '\n')
  table(folder / 'outcomes.csv', range(80), adds=1 - topic, translates=topic, bad=0 * topic)
  table(folder / 'new.csv', range(0, 80, 2), new=1 + 0 * topic)
  (folder / 'costs.csv').write_text('model,cost\nadds,1\ntranslates,2\nbad,0.5\nnew,3\n')


@pytest.fixture(scope='module')
def fitted(tmp_path_factory):
  """The same files with a router of them."""
  directory = tmp_path_factory.mktemp('fitted')
  write(directory)
  run(directory, 'fit')
  return directory


@pytest.fixture
def routed(tmp_path, fitted):
  """A copy of that folder."""
  shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
  return tmp_path


def table(path, prompts, **models):
  with open(path, 'w') as file:
    writer = csv.writer(file)
    writer.writerow(['id', *models])
    writer.writerows([[f'p{row}', *(int(own[row]) for own in models.values())] for row in prompts])


def run(
  folder, mode, *, answers='outcomes.csv', router='router.json', costs=None,
  prompts='prompts.jsonl', overwrite=False, **options,
):  # fmt: skip
  files = ModelAnswers(
    answers and str(folder / answers), str(folder / prompts),
    costs or str(folder / 'costs.csv'),
  )  # fmt: skip
  usual = {'clusters': 2, 'strength': 0.0, **options}
  route.route(mode, str(folder / router), files, RouteOptions(**usual), overwrite=overwrite)
  return routers.read(folder / router) if mode in ('fit', 'add', 'remove') else None


def test_a_fitted_router_sends_each_topic_to_the_model_that_knows_it(folder):
  router = run(folder, 'fit')
  gamma = router.losses(router.embed([TOPICS[0].format(3, 4), TOPICS[1].format(5, 6)]))
  names = [router.pool.names[model] for model in choose(gamma, router.pool.cost, 0.01)]
  assert names == ['adds', 'translates']
  assert [router.pool.names[m] for m in choose(gamma, router.pool.cost, np.inf)] == ['bad', 'bad']
  assert [path.name for path in folder.glob('*.npz')] == [
    json.loads((folder / 'router.json').read_text())['arrays']
  ]


def test_an_empty_cell_is_a_missing_answer(routed):
  (routed / 'new.csv').write_text('id,new\np0,1\np1,0\np2,\n')
  assert run(routed, 'add', answers='new.csv').pool.answers[-1] == 2


def test_a_model_that_joins_leaves_the_rows_of_the_others_as_they_are(routed):
  before = routers.read(routed / 'router.json')
  after = run(routed, 'add', answers='new.csv')
  assert after.pool.names == (*before.pool.names, 'new')
  assert after.pool.psi[:3].tobytes() == before.pool.psi.tobytes()
  assert after.pool.psi[3].tolist() == [0, 0]  # missing answers are not wrong
  assert after.pool.answers.tolist() == [80, 80, 80, 40]
  for name in ('centroids', 'weights', 'directions', 'groups'):
    assert after.arrays[name].tobytes() == before.arrays[name].tobytes()
  assert len([*routed.glob('*.npz')]) == 1


def test_planned_prompts_are_the_validation_prompts_of_least_error(routed, caplog):
  caplog.set_level('INFO')
  run(routed, 'plan', count=10)
  ids = (routed / 'router.plan.csv').read_text().split()
  assert ids[0] == 'id'
  assert len(set(ids[1:])) == 10
  table(routed / 'few.csv', [int(name[1:]) for name in ids[1:]], new=np.ones(80))
  router = run(routed, 'add', answers='few.csv', predict_missing=True)
  assert router.pool.answers[-1] == 10
  assert '70 without an answer are predicted' in caplog.text
  assert router.arrays['losses'].shape == (80, 4)
  assert np.isnan(router.arrays['losses'][:, 3]).sum() == 70


def test_trials_draw_prompts_and_models_and_find_the_gain_of_two_topics(folder, caplog):
  caplog.set_level('INFO')
  run(folder, 'evaluate', router='out', trials=3, unseen=1.0)
  written = json.loads((folder / 'out' / 'routing.json').read_text())
  area = {name: [n['area'] for n in own] for name, own in written['numbers'].items()}
  assert np.mean(area['ZeroRouter']) < np.mean(area['clusters']) <= np.mean(area['oracle'])
  assert written['sign test']['first_only'] == 3
  assert np.array(written['quality']['clusters']).shape == (3, 101)
  assert 'trial 3/3' in caplog.text
  assert 'routing.json: 3 trials' in caplog.text
  page = (folder / 'out' / 'report.html').read_text()
  assert 'The router has the larger area than ZeroRouter in 3 of 3 trials' in page
  assert (folder / 'out' / 'routing.png').read_bytes()[:4] == b'\x89PNG'


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    ({'mode': 'train'}, "MODE='train' is none of fit, add, remove, plan, choose, policy, evaluate"),
    ({'mode': 'fit'}, 'router.json exists: choose another ROUTER, or replace it, OVERWRITE=True'),
    ({'mode': 'add'}, "The pool has a model 'adds' already"),
    ({'mode': 'add', 'answers': 'foreign.csv'}, "1 of 1 answers are to no validation prompt"),
    ({'mode': 'add', 'answers': 'absent.csv'}, 'absent.csv'),
    ({'mode': 'evaluate', 'answers': 'new.csv', 'router': 'o'}, 'two models or more'),
    ({'mode': 'evaluate', 'answers': 'short.csv', 'router': 'o'}, '3 prompts are too few'),
    ({'mode': 'evaluate', 'costs': FREE, 'router': 'o'}, "Model 'bad' costs 0"),
    ({'mode': 'fit', 'costs': {**FREE, 'bad': -1}, 'overwrite': True}, "'bad'"),
    ({'mode': 'add', 'answers': None}, 'OUTCOMES and COSTS are needed'),
    ({'mode': 'evaluate', 'unseen': 0.0, 'router': 'o'}, 'UNSEEN=0.0; it must be a share above 0'),
    ({'mode': 'fit', 'clusters': 0}, 'CLUSTERS=0; it must be 1 or more'),
    ({'mode': 'fit', 'strength': -1.0}, 'STRENGTH=-1.0; it must be a finite number of 0 or more'),
    ({'mode': 'plan', 'router': 'damaged.json'}, 'damaged.json is no router of version 1'),
    ({'mode': 'plan', 'router': 'nothing.json'}, 'nothing.json does not exist: make it with'),
    ({'mode': 'plan', 'router': ''}, 'is a folder; MODE=plan takes the file of a router'),
    ({'mode': 'evaluate'}, 'router.json is a file; MODE=evaluate writes to a folder: name one'),
  ],
)  # fmt: skip
def test_what_cannot_be_routed_is_one_sentence_with_the_way_out(routed, arguments, sentence):
  table(routed / 'foreign.csv', [5], new=np.ones(80))
  (routed / 'foreign.csv').write_text('id,new\nq1,1\n')
  with open(routed / 'prompts.jsonl', 'a') as file:
    file.write('{"id": "q1", "prompt": "?"}\n')
  table(routed / 'short.csv', range(3), adds=np.ones(80), bad=np.zeros(80))
  (routed / 'damaged.json').write_text((routed / 'router.json').read_text().replace('"p1"', '1'))
  with pytest.raises((ValueError, OSError), match=sentence):
    run(routed, **arguments)


def test_arrays_that_have_changed_are_refused(routed):
  (arrays,) = routed.glob('*.npz')
  data = bytearray(arrays.read_bytes())
  data[len(data) // 2] ^= 1
  arrays.write_bytes(bytes(data))
  with pytest.raises(ValueError, match=r'has changed.*: fit it again'):
    routers.read(routed / 'router.json')


def test_the_command_fits_a_router_and_explains_itself(folder):
  command = [sys.executable, '-m', 'cascades.route', '--gin_file=runs/route.gin']
  settings = {
    'MODE': 'fit', 'ROUTER': folder / 'own.json', 'OUTCOMES': folder / 'outcomes.csv',
    'PROMPTS': folder / 'prompts.jsonl', 'COSTS': folder / 'costs.csv', 'CLUSTERS': 2,
  }  # fmt: skip
  arguments = [f'--gin.{name}={value}' for name, value in settings.items()]
  done = subprocess.run([*command, *arguments], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert '3 models, 2 clusters' in done.stdout
  new = ['--gin.MODE=add', f'--gin.OUTCOMES={folder / "new.csv"}', "--gin.COSTS={'new': 3}"]
  added = subprocess.run([*command, *arguments, *new], capture_output=True, text=True)
  assert added.returncode == 0, added.stderr
  assert (
    'new: cost 3, 40 of 80 validation prompts answered; 40 without an answer are left out'
    in added.stdout
  )


def test_a_model_that_leaves_leaves_no_trace(routed):
  before = routers.read(routed / 'router.json')
  run(routed, 'add', answers='new.csv')
  run(routed, 'remove', models=['new'])
  after = routers.read(routed / 'router.json')
  assert after.pool.names == before.pool.names
  assert after.pool.psi.tobytes() == before.pool.psi.tobytes()
  assert after.arrays['losses'].tobytes() == before.arrays['losses'].tobytes()
  with pytest.raises(ValueError, match="no model 'old'; it has adds, translates, bad"):
    run(routed, 'remove', models=['old'])
  with pytest.raises(ValueError, match='names no model or all of the router'):
    run(routed, 'remove', models=['adds', 'translates', 'bad'])
  with pytest.raises(ValueError, match='names no model or all of the router'):
    run(routed, 'remove')


def test_prompts_get_the_model_of_their_topic_and_foreign_ones_a_warning(routed, caplog):
  caplog.set_level('INFO')
  requests = routed / 'requests.csv'
  requests.write_text(f'id,prompt\na,{TOPICS[0].format(3, 9)}\nb,{TOPICS[1].format(3, 9)}\n')
  run(routed, 'choose', prompts=requests, price=0.01)
  with open(routed / 'router.choices.csv') as file:
    chosen = list(csv.DictReader(file))
  assert [row['model'] for row in chosen] == ['adds', 'translates']
  assert [row['cost'] for row in chosen] == ['1.0', '2.0']
  assert all(float(row['predicted_loss']) == 0 for row in chosen)
  assert 'mean cost 1.5 at the price 0.01' in caplog.text
  assert 'may not hold' not in caplog.text
  foreign = ''.join(f'{i},この文章の{i}番目の感情は何ですか\n' for i in range(9))
  requests.write_text(f'id,prompt\n{foreign}')
  run(routed, 'choose', prompts=requests, overwrite=True)
  assert 'drift 1.000, of 0.5' in caplog.text
  assert 'may not hold: validate on prompts like these' in caplog.text
  with pytest.raises(FileExistsError, match=r'router\.choices\.csv exists'):
    run(routed, 'choose', prompts=requests)


def test_a_policy_chooses_as_the_router_until_that_changes(routed):
  router = routers.read(routed / 'router.json')
  run(routed, 'policy', budget=1.0)
  choose_models = prompt_routing.open_policy(routed / 'router.policy.json')
  policy = json.loads((routed / 'router.policy.json').read_text())
  assert policy['expected_cost'] <= 1
  assert policy['price'] == router.price(1.0) > 0
  prompts = [TOPICS[i % 2].format(i, 9) for i in range(20)]
  vectors = router.embed(prompts)
  models = choose(router.losses(vectors), router.pool.cost, policy['price'])
  assert [c.model for c in choose_models(prompts)] == [router.pool.names[m] for m in models]
  assert choose_models(['日本語の文章'])[0].drift > 0.9
  assert choose_models([]) == []
  for budget, sentence in ((0.1, 'below the cost of the cheapest model, 0.5'), (np.nan, 'BUDGET')):
    with pytest.raises(ValueError, match=sentence):
      run(routed, 'policy', budget=budget, overwrite=True)
  run(routed, 'add', answers='new.csv')
  with pytest.raises(ValueError, match=r'has changed since .* write the policy again'):
    prompt_routing.open_policy(routed / 'router.policy.json')
  (routed / 'router.policy.json').write_text('{}')
  with pytest.raises(ValueError, match='no routing policy of version 1'):
    prompt_routing.open_policy(routed / 'router.policy.json')


def test_an_encoder_embeds_each_prompt_once_and_is_needed_again(folder, caplog, monkeypatch):
  caplog.set_level('INFO')
  encoder = folder / 'encoder'
  encoder.mkdir()
  encoders_test.write(encoder, 'bert')
  words = ['add', 'the', 'two', 'numbers', 'and', 'translate', 'words', 'into', 'french']
  pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *words]
  (encoder / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
  router = run(folder, 'fit', embeddings=str(encoder))
  assert router.encoder == 'encoder'
  (store,) = folder.glob('encoder-*.vectors.npz')
  texts = outcomes.texts(folder / 'prompts.jsonl').values()
  with np.load(store) as stored:
    assert len(stored['names']) == len(set(texts))
  assert f'prompt {len(set(texts))}/{len(set(texts))}' in caplog.text
  with monkeypatch.context() as patch:  # the vectors are in the store
    patch.setattr(encoders, 'open_embedder', None)
    run(folder, 'fit', embeddings=str(encoder), overwrite=True)
  with pytest.raises(ValueError, match="vectors of the encoder 'encoder': give its folder"):
    run(folder, 'choose')
  with pytest.raises(ValueError, match="is the encoder 'other', and the router was fitted with"):
    run(folder, 'policy', embeddings=str(folder / 'other'))
  run(folder, 'policy', embeddings=str(encoder), price=0.01)
  run(folder, 'choose', embeddings=str(encoder), price=0.01)
  prompts = [TOPICS[0].format(1, 2), TOPICS[1].format(1, 2)]
  chosen = prompt_routing.open_policy(folder / 'router.policy.json')(prompts)
  assert [choice.model for choice in chosen] == ['adds', 'translates']


def test_a_router_of_tables_takes_their_costs_and_their_vectors(folder, caplog):
  caplog.set_level('INFO')
  topic = np.arange(40) % 2
  for model, right in (('a', topic == 0), ('b', topic == 1)):
    directory = folder / model / 'validation'
    records = [
      rows.build(
        id=str(i), inputs=TOPICS[t].format(i, i), targets=['yes'], answer='yes' if ok else 'no',
        tokens=[7], logprobs=[-0.5], statistics={'accuracy': [float(ok), 1.0]},
      )
      for i, (t, ok) in enumerate(zip(topic, right, strict=True)) if i or model == 'a'
    ]  # fmt: skip
    synthetic_tables.write(
      directory, 't', records, split='validation', flops_per_token=2.0 + len(model)
    )
    (table,) = shards.read(directory)
    vectors = np.array([[topic[int(name)], 1] for name in table.ids], np.float32)
    sidecars.write(directory, 'prompt', table, vectors, origin={'encoder': 'e'})
  answers = ModelAnswers(tables={name: str(folder / name) for name in 'ab'})
  for embeddings in ('words', 'tables'):
    path = folder / f'{embeddings}.json'
    options = RouteOptions(clusters=2, strength=0.0, embeddings=embeddings)
    route.route('fit', str(path), answers, options)
    router = routers.read(path)
    assert router.pool.cost.tolist() == [3, 3]
    assert router.pool.answers.tolist() == [40, 39]
    assert sorted(router.pool.psi.tolist()) == [[0, 1], [1, 0]]
  assert 'b: cost 3, 39 of 40 validation prompts answered; 1 without an answer' in caplog.text
  with_prompts = dataclasses.replace(answers, prompts=str(folder / 'prompts.jsonl'))
  with pytest.raises(ValueError, match="EMBEDDINGS='tables' has vectors of the rows of TABLES"):
    route.route('fit', str(folder / 'r.json'), with_prompts, options)


def test_equal_models_one_model_and_empty_clusters_are_said(folder, caplog):
  caplog.set_level('INFO')
  table(folder / 'twins.csv', range(8), one=np.arange(8) % 2, two=np.arange(8) % 2)
  costs = {'one': 2, 'two': 1, 'three': 0}
  twins = run(folder, 'fit', answers='twins.csv', costs=costs, clusters=30)
  assert 'one and two have equal losses in every cluster: the cheaper one is always' in caplog.text
  assert set(twins.choices(0.0)) == set(twins.choices(0.1)) == {1}
  assert 'clusters have no validation prompt: models have their mean loss there' in caplog.text
  empty = np.bincount(twins.arrays['groups'], minlength=30) == 0
  assert (twins.pool.psi[:, empty] == 0.5).all()
  table(folder / 'single.csv', range(8), one=np.arange(8) % 2)
  single = run(folder, 'fit', answers='single.csv', costs=costs, router='single.json')
  assert set(single.choices(1.0)) == {0}
  with pytest.raises(ValueError, match='1 known model; an order of prompts is learned from two'):
    run(folder, 'plan', router='single.json')
  header = 'id,one,one\np0,1,1\n'
  (folder / 'twice.csv').write_text(header)
  with pytest.raises(ValueError, match="names the column 'one' twice"):
    run(folder, 'fit', answers='twice.csv', costs=costs, router='twice.json')


def test_nobody_answers_where_no_model_is_worth_it(routed):
  router = routers.read(routed / 'router.json')
  poor = router._replace(pool=router.pool.remove('translates'))
  for quality, answering in ((0.5, {'', 'adds'}), (0.995, {''}), (1.0, {''})):
    abstaining = poor.abstaining(quality)
    assert {abstaining.pool.names[model] for model in abstaining.choices(0.01)} == answering
  assert poor.abstaining(None) is poor
  run(routed, 'policy', abstention=1.0)
  chosen = prompt_routing.open_policy(routed / 'router.policy.json')([TOPICS[0]])
  assert (chosen[0].model, chosen[0].cost) == ('', 0)
  with pytest.raises(ValueError, match='ABSTENTION=2; a quality is a number from 0 to 1'):
    run(routed, 'policy', abstention=2)


def test_a_router_without_vectors_of_its_prompts_chooses_and_has_no_drift(routed):
  router = routers.read(routed / 'router.json')
  arrays = {k: v for k, v in router.arrays.items() if not k.startswith('drift')}
  routers.write(routed / 'old.json', router._replace(arrays=arrays))
  old = routers.read(routed / 'old.json')
  assert old.choices(0.01).tolist() == router.choices(0.01).tolist()
  with pytest.raises(ValueError, match='holds no vectors of its validation prompts: fit it again'):
    old.reference()


@pytest.mark.parametrize('method', ['learned map', 'hierarchical'])
def test_routers_of_every_method_are_stored_and_take_models_in(folder, method):
  router = run(folder, 'fit', method=method, strength=1.0, clusters=5)
  version = {'learned map': 2, 'hierarchical': 3}[method]
  assert json.loads((folder / 'router.json').read_text())['version'] == version
  vectors = router.embed([TOPICS[0].format(3, 4), TOPICS[1].format(5, 6)])
  assert [router.pool.names[m] for m in router.rule(0.01)(vectors)] == ['adds', 'translates']
  before = router.losses(vectors)
  joined = run(folder, 'add', answers='new.csv')
  np.testing.assert_array_equal(joined.losses(vectors)[:, :3], before)
  assert (joined.losses(vectors)[:, 3] < 0.1).all()
  run(folder, 'policy', price=0.01)
  choose_models = prompt_routing.open_policy(folder / 'router.policy.json')
  chosen = choose_models([TOPICS[0].format(3, 4), TOPICS[1].format(5, 6)])
  own = joined.rule(0.01)(vectors)
  assert [choice.model for choice in chosen] == [joined.pool.names[m] for m in own]
  losses = joined.losses(vectors)[[0, 1], own]
  np.testing.assert_allclose([choice.predicted_loss for choice in chosen], losses, rtol=1e-6)


def test_a_method_that_does_not_exist_is_refused(folder):
  with pytest.raises(ValueError, match="METHOD='tree' is none of clusters, learned map, hierarch"):
    run(folder, 'fit', method='tree')
