"""The program routes among models that join and leave: files, plans, trials, and bad input."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from cascades import route
from cascades.evaluation import routers
from cascades.predictions.outcomes import AnswerFiles
from cascades.price_path import choose
from cascades.route import RouteOptions

TOPICS = ['add the two numbers {} and {}', 'translate the words {} and {} into French']
FREE = {'adds': 1, 'translates': 2, 'bad': 0}


@pytest.fixture
def folder(tmp_path):
  """Files of 80 prompts on two topics, of which each of two models knows one, and a third none."""
  rng = np.random.default_rng(0)
  topic = rng.integers(0, 2, 80)
  prompts = [TOPICS[t].format(*rng.integers(0, 99, 2)) for t in topic]
  with open(tmp_path / 'prompts.jsonl', 'w') as file:
    for index, text in enumerate(prompts):
      file.write(json.dumps({'id': f'p{index}', 'prompt': text}) + '\n')
  table(tmp_path / 'outcomes.csv', range(80), adds=1 - topic, translates=topic, bad=0 * topic)
  table(tmp_path / 'new.csv', range(0, 80, 2), new=1 + 0 * topic)
  (tmp_path / 'costs.csv').write_text('model,cost\nadds,1\ntranslates,2\nbad,0.5\nnew,3\n')
  return tmp_path


def table(path, rows, **models):
  with open(path, 'w') as file:
    writer = csv.writer(file)
    writer.writerow(['id', *models])
    writer.writerows([[f'p{row}', *(int(own[row]) for own in models.values())] for row in rows])


def run(
  folder, mode, *, outcomes='outcomes.csv', router='router.json', costs=None, overwrite=False,
  **options,
):  # fmt: skip
  answers = AnswerFiles(
    outcomes and str(folder / outcomes), str(folder / 'prompts.jsonl'),
    costs or str(folder / 'costs.csv'),
  )  # fmt: skip
  usual = {'clusters': 2, 'strength': 0.0, **options}
  route.route(mode, str(folder / router), answers, RouteOptions(**usual), overwrite=overwrite)
  return routers.read(folder / router) if mode in ('fit', 'add') else None


def test_a_fitted_router_sends_each_topic_to_the_model_that_knows_it(folder):
  router = run(folder, 'fit')
  gamma = router.losses([TOPICS[0].format(3, 4), TOPICS[1].format(5, 6)])
  names = [router.pool.names[model] for model in choose(gamma, router.pool.cost, 0.01)]
  assert names == ['adds', 'translates']
  assert [router.pool.names[m] for m in choose(gamma, router.pool.cost, np.inf)] == ['bad', 'bad']
  assert [path.name for path in folder.glob('*.npz')] == [
    json.loads((folder / 'router.json').read_text())['arrays']
  ]


def test_an_empty_cell_is_a_missing_answer(folder):
  (folder / 'new.csv').write_text('id,new\np0,1\np1,0\np2,\n')
  run(folder, 'fit')
  assert run(folder, 'add', outcomes='new.csv').pool.answers[-1] == 2


def test_a_model_that_joins_leaves_the_rows_of_the_others_as_they_are(folder):
  before = run(folder, 'fit')
  after = run(folder, 'add', outcomes='new.csv')
  assert after.pool.names == (*before.pool.names, 'new')
  assert after.pool.psi[:3].tobytes() == before.pool.psi.tobytes()
  assert after.pool.psi[3].tolist() == [0, 0]  # missing answers are not wrong
  assert after.pool.answers.tolist() == [80, 80, 80, 40]
  for name in ('centroids', 'weights', 'directions', 'groups'):
    assert after.arrays[name].tobytes() == before.arrays[name].tobytes()
  assert len([*folder.glob('*.npz')]) == 1


def test_planned_prompts_are_the_validation_prompts_of_least_error(folder, caplog):
  caplog.set_level('INFO')
  run(folder, 'fit')
  run(folder, 'plan', count=10)
  ids = (folder / 'router.plan.csv').read_text().split()
  assert ids[0] == 'id'
  assert len(set(ids[1:])) == 10
  table(folder / 'few.csv', [int(name[1:]) for name in ids[1:]], new=np.ones(80))
  router = run(folder, 'add', outcomes='few.csv', predict_missing=True)
  assert router.pool.answers[-1] == 10
  assert '70 without an answer are predicted' in caplog.text
  assert router.arrays['losses'].shape == (80, 4)
  assert np.isnan(router.arrays['losses'][:, 3]).sum() == 70


def test_trials_draw_prompts_and_models_and_find_the_gain_of_two_topics(folder, caplog):
  caplog.set_level('INFO')
  run(folder, 'evaluate', router='out', trials=6, unseen=1.0)
  written = json.loads((folder / 'out' / 'routing.json').read_text())
  area = {name: [n['area'] for n in own] for name, own in written['numbers'].items()}
  assert np.mean(area['ZeroRouter']) < np.mean(area['clusters']) <= np.mean(area['oracle'])
  assert written['sign test']['first_only'] == 6
  assert np.array(written['quality']['clusters']).shape == (6, 101)
  assert 'trial 6/6' in caplog.text
  assert 'routing.json: 6 trials' in caplog.text
  assert (folder / 'out' / 'routing.png').read_bytes()[:4] == b'\x89PNG'


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    ({'mode': 'train'}, "MODE='train' is none of fit, add, plan, evaluate"),
    ({'mode': 'fit'}, 'router.json exists: choose another ROUTER, or replace it, OVERWRITE=True'),
    ({'mode': 'add'}, "The pool has a model 'adds' already"),
    ({'mode': 'add', 'outcomes': 'foreign.csv'}, "1 of 1 answers are to no validation prompt"),
    ({'mode': 'add', 'outcomes': 'absent.csv'}, 'absent.csv'),
    ({'mode': 'evaluate', 'outcomes': 'new.csv', 'router': 'o'}, 'two models or more'),
    ({'mode': 'evaluate', 'outcomes': 'short.csv', 'router': 'o'}, '3 prompts are too few'),
    ({'mode': 'evaluate', 'costs': FREE, 'router': 'o'}, "Model 'bad' costs 0"),
    ({'mode': 'fit', 'costs': {**FREE, 'bad': -1}, 'overwrite': True}, "'bad'"),
    ({'mode': 'add', 'outcomes': None}, 'OUTCOMES and COSTS are needed'),
    ({'mode': 'evaluate', 'unseen': 0.0, 'router': 'o'}, 'UNSEEN=0.0; it must be a share above 0'),
    ({'mode': 'fit', 'clusters': 0}, 'CLUSTERS=0; it must be 1 or more'),
    ({'mode': 'fit', 'strength': -1.0}, 'STRENGTH=-1.0; it must be a finite number of 0 or more'),
    ({'mode': 'plan', 'router': 'damaged.json'}, 'damaged.json is no router of version 1'),
    ({'mode': 'plan', 'router': 'nothing.json'}, 'nothing.json does not exist: make it with'),
    ({'mode': 'plan', 'router': ''}, 'is a folder; MODE=plan takes the file of a router'),
    ({'mode': 'evaluate'}, 'router.json is a file; MODE=evaluate writes to a folder: name one'),
  ],
)  # fmt: skip
def test_what_cannot_be_routed_is_one_sentence_with_the_way_out(folder, arguments, sentence):
  run(folder, 'fit')
  table(folder / 'foreign.csv', [5], new=np.ones(80))
  (folder / 'foreign.csv').write_text('id,new\nq1,1\n')
  with open(folder / 'prompts.jsonl', 'a') as file:
    file.write('{"id": "q1", "prompt": "?"}\n')
  table(folder / 'short.csv', range(3), adds=np.ones(80), bad=np.zeros(80))
  (folder / 'damaged.json').write_text((folder / 'router.json').read_text().replace('"p1"', '1'))
  with pytest.raises((ValueError, OSError), match=sentence):
    run(folder, **arguments)


def test_arrays_that_have_changed_are_refused(folder):
  run(folder, 'fit')
  (arrays,) = folder.glob('*.npz')
  data = bytearray(arrays.read_bytes())
  data[len(data) // 2] ^= 1
  arrays.write_bytes(bytes(data))
  with pytest.raises(ValueError, match=r'has changed.*: fit it again'):
    routers.read(folder / 'router.json')


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
