"""Endpoints: requests, settings, addresses and keys, and the command against a real socket."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from cascades import evaluate
from cascades.evaluation.chains import Chains
from cascades.evaluation.comparison import Settings
from cascades.evaluation.tables import Tables
from cascades.inference import (
  answers,
  endpoints,
)
from cascades.reporting import figures
from cascades.reporting.report import Report
from tests import tiny
from tests.endpoint_tables import PRICES, SHARED, infer, limits
from tests.openai_server import status

ROOT = pathlib.Path(__file__).parents[2]
KEY = 'sk-secret-0123456789'


def test_draws_have_a_seed_of_their_own_which_the_next_run_repeats():
  def seeds(seed):
    options = answers.DecodingOptions(temperature=0.7, top_p=0.9, seed=seed)
    requests = endpoints.Requests(
      endpoints.Address('http://h/v1', 'm'), endpoints.Endpoint(parameters=1), options, 8
    )
    bodies = [requests.body('x', number) for number in range(50)]
    assert all((b['temperature'], b['top_p']) == (0.7, 0.9) and 'top_k' not in b for b in bodies)
    return [b['seed'] for b in bodies]

  assert len({*seeds(0), *seeds(1)}) == 100
  assert seeds(0) == seeds(0)
  assert all(0 <= seed < 1 << 31 for seed in seeds(0))


def test_fields_can_be_left_out():
  requests = endpoints.Requests(
    endpoints.Address('http://h/v1', 'm'),
    endpoints.Endpoint(
      parameters=1,
      logprobs=False,
      fields={'temperature': None, 'max_tokens': None, 'max_completion_tokens': 9},
    ),
    answers.DecodingOptions(),
    8,
  )
  assert requests.body('x', 0) == {
    'model': 'm', 'messages': [{'role': 'user', 'content': 'x'}], 'max_completion_tokens': 9,
  }  # fmt: skip


def test_the_key_is_sent_and_written_nowhere(server, tmp_path, monkeypatch, caplog, capsys):
  monkeypatch.setenv('MY_KEY', KEY)
  repeated = status(400, f'Bearer {KEY} is not welcome in row 3')
  server.change = lambda response, _: {**response, 'echo': f'Bearer {KEY}'}
  server.faults += [None, repeated, status(500, KEY)]
  infer(server, tmp_path, key_variable='MY_KEY', limits=limits(concurrency=1))
  server.faults += [status(401, f'Incorrect API key provided: {KEY}')] * 9
  with pytest.raises(OSError, match=r'401: .*\*\*\* \(the key is not accepted\)') as error:
    infer(server, tmp_path, model='large', overwrite=True, key_variable='MY_KEY')
  assert {headers['Authorization'] for _, headers, _ in server.requests} == {f'Bearer {KEY}'}
  written = [path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()]
  assert len(written) > 20
  assert not [data for data in written if KEY.encode() in data]
  output = capsys.readouterr()
  assert KEY not in str(error.value) + caplog.text + output.out + output.err


@pytest.mark.parametrize('value', ['', ' ', 'two words', 'line\nfeed', 'ключ'])
def test_a_key_that_no_header_takes_is_refused_without_showing_it(monkeypatch, value):
  monkeypatch.setenv('MY_KEY', value)
  with pytest.raises(ValueError, match='MY_KEY holds no key') as error:
    endpoints.Endpoint(key_variable='MY_KEY').key()
  assert not value.strip() or value not in str(error.value)


def test_a_key_in_the_place_of_its_variable_is_not_shown():
  for name in (KEY, 'NO_SUCH_VARIABLE'):
    with pytest.raises(ValueError, match='API_KEY_VARIABLE names no variable') as error:
      endpoints.Endpoint(key_variable=name).key()
    assert name not in str(error.value)


def test_addresses_are_read_and_secrets_in_them_refused():
  assert endpoints.parse('http://h:1/v1/#meta/llama:8b') == ('http://h:1/v1', 'meta/llama:8b')
  assert endpoints.is_url('https://api.openai.com/v1#m')
  assert not endpoints.is_url('gs://b/run')
  for path, message in (
    ('http://h/v1', 'names no model'), ('http:///v1#m', 'names no host'),
    ('http://h:port/v1#m', 'no URL'), (f'http://u:{KEY}@h/v1#m', 'a user, a password'),
    (f'http://h/v1?key={KEY}#m', 'a query'),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=message) as error:
      endpoints.parse(path)
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'api': 'responses'}, "API='responses' is none of chat, completions"),
    ({'parameters': 0}, 'PARAMETERS=0 must be'),
    ({'system': 'x', 'api': 'completions'}, 'SYSTEM is a turn of a chat'),
    ({'fields': {'temperature': 1}}, "REQUEST sets 'temperature', which other settings decide"),
    ({'fields': {'model': None}}, "REQUEST sets 'model'"),
    ({'fields': {'n': 2}}, "REQUEST sets 'n'; a table holds one"),
    ({'fields': {'stream': True}}, "REQUEST sets 'stream'"),
    (
      {'fields': {'max_completion_tokens': '9'}},
      r"REQUEST\['max_completion_tokens'\]='9' must be a whole",
    ),
  ],
)
def test_settings_that_cannot_be_are_refused_by_name(options, message):
  with pytest.raises(ValueError, match=message):
    endpoints.Endpoint(**options)


def test_an_unbounded_answer_has_no_highest_price():
  bounded = limits(dollars=1, prices=PRICES)
  endpoints.Endpoint(limits=bounded, fields={'max_tokens': None, 'max_completion_tokens': 9})
  with pytest.raises(ValueError, match='MAX_DOLLARS needs a largest number of tokens'):
    endpoints.Endpoint(limits=bounded, fields={'max_tokens': None})


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'mode': 'score'}, 'MODE=score: for a checkpoint'),
    ({'embeddings': ('answer',)}, 'EMBEDDINGS: for'),
    ({'which': 'best', 'weights': 'int8'}, 'WHICH, WEIGHTS: for'),
    ({'parameters': None}, 'PARAMETERS=8e9'),
    ({'logprobs': False, 'alternatives': 2}, 'ALTERNATIVES=2 needs log-probabilities'),
  ],
)
def test_what_the_api_cannot_give_is_refused_before_anything_is_sent(
  server, tmp_path, changes, message
):
  with pytest.raises(ValueError, match=message):
    infer(server, tmp_path, **changes)
  assert not server.requests


def test_an_endpoint_is_asked_by_one_process(server, tmp_path, monkeypatch):
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  with pytest.raises(ValueError, match='asked by one process: start infer without --multihost'):
    infer(server, tmp_path)
  assert not server.requests


def test_settings_of_an_endpoint_are_not_dropped_for_a_checkpoint(tmp_path):
  with pytest.raises(ValueError, match='settings of an endpoint are for a URL'):
    infer(None, tmp_path, checkpoint_path=str(tmp_path))


@pytest.mark.parametrize('url', ['http://h:1/v1#m', 'https://h/v1'])
def test_programs_that_need_parameters_say_what_an_api_cannot_give(url, tmp_path):
  with pytest.raises(ValueError, match=r'URL of an endpoint.*no probabilities of given'):
    tiny.cache_teacher(
      checkpoint_path=url, directory=str(tmp_path), task=tiny.task(tmp_path),
      task_feature_lengths=tiny.LENGTHS, batch_size=8, mesh=tiny.one_device,
    )  # fmt: skip
  with pytest.raises(ValueError, match='URL of an endpoint'):
    tiny.train(**tiny.settings(tmp_path, large_checkpoint_path=url))


def test_the_command_answers_and_both_models_are_evaluated(server, tmp_path, monkeypatch):
  infer(server, tmp_path, fields={'min_p': 0.1}, limits=limits(prices=PRICES))
  result = subprocess.run(
    [
      sys.executable, '-m', 'cascades.infer', '--gin_file=runs/infer.gin',
      '--gin.TASK=@local.local_jsonl()', '--gin.local.local_jsonl.name=words',
      f"--gin.local.local_jsonl.splits={{'test': '{SHARED}/test.jsonl'}}",
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}", '--gin.BATCH_SIZE=8',
      f'--gin.CHECKPOINT_PATH={server.url}#large', '--gin.INFER_OUTPUT_DIR=large',
      '--gin.PARAMETERS=2e7', '--gin.API_KEY_VARIABLE=MY_KEY', "--gin.REQUEST={'min_p': 0.1}",
      "--gin.PRICES={'prompt': 1e-3, 'generated': 1e-1}", '--gin.MAX_DOLLARS=100',
      '--gin.REQUESTS_PER_MINUTE=60000',
    ],
    capture_output=True, text=True, cwd=tmp_path, check=False,
    env={**os.environ, 'HOME': str(tmp_path), 'PYTHONPATH': str(ROOT), 'MY_KEY': KEY,
         'JAX_PLATFORMS': 'tpu'},  # which fails if the program starts a backend of it
  )  # fmt: skip
  assert result.returncode == 0, result.stdout + result.stderr
  assert result.stderr == ''
  assert re.search(r'32 rows in .*large/test .*, 32 requests, \$11\.\d', result.stdout)
  assert '/32' in result.stdout
  assert '$' in next(line for line in result.stdout.splitlines() if ' ETA ' in line)
  written = [path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()]
  assert not [data for data in written if KEY.encode() in data]
  assert KEY not in result.stdout + result.stderr

  monkeypatch.setattr(figures, 'draw', lambda _: {})
  evaluate.evaluate(
    Tables({'small': str(tmp_path / 'table')}, str(tmp_path / 'large')),
    str(tmp_path / 'report'),
    settings=Settings(resamples=10),
    report=Report(interactive=False),
    chains=Chains(axes=['dollars', 'seconds']),
  )
  curves = json.loads((tmp_path / 'report' / 'curves.json').read_text())
  assert 'dollars' in json.dumps(curves)
