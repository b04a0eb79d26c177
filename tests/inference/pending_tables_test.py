"""Identity of tables: what their digest depends on, and what it does not."""

from __future__ import annotations

import json
import types

import pytest
from etils import epath

from cascades.inference.pending_tables import PendingTable
from cascades.predictions import shards

DESCRIBED = {
  'checkpoint': '/runs/small', 'checkpoint_identity': 'saved at 3', 'step': 3, 'task': 'a',
  'mode': 'predict', 'split': 'test', 'metrics': ['accuracy'], 'alternatives': 0,
}  # fmt: skip


def table(directory, *, without=(), records='records-1', **changes):
  split = types.SimpleNamespace(directory=epath.Path(records))
  described = {k: v for k, v in (DESCRIBED | changes).items() if k not in without}
  return PendingTable(epath.Path(directory), split, described, 2, iter)


def test_a_checkpoint_has_one_digest_under_any_path(tmp_path):
  first = table(tmp_path).fingerprint
  assert table(tmp_path, checkpoint='/elsewhere/small').fingerprint == first
  others = [
    table(tmp_path, checkpoint_identity='saved at 4'), table(tmp_path, step=4),
    table(tmp_path, records='records-2'), table(tmp_path, alternatives=2),
  ]  # fmt: skip
  assert len({first, *(other.fingerprint for other in others)}) == 5


def test_models_without_an_identity_are_told_apart_by_their_address(tmp_path):
  paths = ('https://a#model', 'https://b#model')
  digests = {
    table(tmp_path, checkpoint=path, without=['checkpoint_identity']).fingerprint for path in paths
  }
  assert len(digests) == 2


@pytest.mark.parametrize('finished', [False, True])
def test_a_table_of_an_earlier_version_keeps_its_digest_and_path(tmp_path, finished):
  """It had the path in its digest, which its shards are marked with."""
  earlier = table(tmp_path)._digest(DESCRIBED)
  name = 'manifest' if finished else 'begun'
  (tmp_path / f'a-predict.{name}.json').write_text(
    json.dumps({**DESCRIBED, 'fingerprint': earlier})
  )
  for path in ('/runs/small', '/elsewhere/small'):
    again = table(tmp_path, checkpoint=path)
    assert again.fingerprint == earlier != table(tmp_path / 'new').fingerprint
    shards.begin(
      tmp_path, again._origin[0], fingerprint=again.fingerprint, overwrite=False
    )  # not refused
  assert table(tmp_path, step=4).fingerprint != earlier


def test_a_damaged_origin_is_no_origin(tmp_path):
  (tmp_path / 'a-predict.begun.json').write_text('{"check')
  assert table(tmp_path).fingerprint == table(tmp_path / 'new').fingerprint
