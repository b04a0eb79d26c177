"""Tables of a model behind a URL, for tests of endpoints."""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
import tempfile
from typing import Any

from cascades.inference import endpoint_client, endpoints
from cascades.predictions import shards
from cascades.tasks import local
from cascades.tasks.task import Task
from cascades.types import Predictions
from tests import openai_server, tiny

TEMPORARY = tempfile.TemporaryDirectory(prefix='cascades-endpoints-')
SHARED = pathlib.Path(TEMPORARY.name)  # rows and their records
PRICES = {'prompt': 1e-3, 'generated': 1e-2}


def limits(**changes: Any) -> endpoint_client.Limits:
  """Limits of few tries."""
  return endpoint_client.Limits(**{'tries': 4, **changes})


@functools.cache
def distinct() -> Task:
  """32 different words of three or four letters to be copied in capitals, backwards."""
  words = [
    ' '.join(word)
    for short_and_long in zip(*(itertools.permutations('abcde', n) for n in (3, 4)), strict=False)
    for word in short_and_long
  ]
  lines = [
    json.dumps({'id': f'test-{i}', 'inputs': word, 'targets': word[::-1].upper()})
    for i, word in enumerate(words[:32])
  ]
  (SHARED / 'test.jsonl').write_text('\n'.join(lines))
  return local.local_jsonl('words', {'test': str(SHARED / 'test.jsonl')})


def infer(
  server: openai_server.Server | None,
  directory: pathlib.Path,
  *,
  model: str = 'small',
  url: str | None = None,
  **changes: Any,
) -> Predictions:
  """Table of the server's answers to the 32 rows of the tiny task."""
  own = {key: changes.pop(key) for key in list(changes) if key in ENDPOINT}
  options = {'parameters': 1e6, 'responses_dir': str(directory / 'responses'), 'limits': limits()}
  tiny.infer(**{
    'checkpoint_path': f'{url or server.url}#{model}' if url or server else None,
    'infer_output_dir': str(directory / 'table'),
    'task': changes.pop('task', None) or distinct(),
    'task_feature_lengths': tiny.LENGTHS,
    'batch_size': 8,
    'shard_rows': 10,
    'records_dir': str(SHARED / 'records'),
    'endpoint': endpoints.Endpoint(**options | own),
    **changes,
  })  # fmt: skip
  (table,) = shards.read(directory / 'table' / 'test')
  return table


ENDPOINT = {'api', 'parameters', 'key_variable', 'system', 'fields', 'logprobs', 'limits'}


def stored_rows(directory: pathlib.Path) -> list[dict[str, Any]]:
  """Rows of the table as JSON."""
  paths = sorted((directory / 'table' / 'test').glob('*-of-?????'))
  return [json.loads(line) for path in paths for line in path.read_text().splitlines()]
