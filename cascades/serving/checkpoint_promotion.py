"""Files between a server's log and another checkpoint of its small model.

    EXPORT/train.jsonl       audited prompts with the answers of the large model, to train on
    EXPORT/held_back.jsonl   those that are held back, for `infer` with the checkpoint

A hash of its id puts a prompt into one of them for good; another one decides whether a prompt that
is held back calibrates the threshold of the checkpoint, or compares it with the one in force.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection
from typing import Any

from cascades.evaluation.promotions import Caution, Reign, is_held_back
from cascades.predictions import alignment, shards
from cascades.runtime import files
from cascades.serving.audited import AuditedRows
from cascades.serving.promotion_journal import Journal
from cascades.types import Predictions

LEAST_ROWS = 4  # that are held back, two to calibrate and two to compare


def calibrates(id: str) -> bool:
  """True for the half of the ids that calibrate a checkpoint."""
  return is_held_back(f'calibrate {id}', 0.5)


def export(audited: AuditedRows, folder: str, caution: Caution) -> None:
  """Write the audited prompts as JSON lines of `id`, `inputs` and `targets`.

  Raises:
    ValueError: The log holds digests of the texts.
  """
  lines: dict[bool, list[str]] = {False: [], True: []}
  for pair in audited.rows(0, len(audited)):
    if pair['small']['aux']['text'] == 'digest':
      raise ValueError(
        'The log holds digests of the texts, which no model can be trained on: leave EXPORT out, '
        'or serve with LOG_TEXT=True.'
      )
    row = {'id': pair['id'], 'inputs': pair['small']['inputs']['inputs_pretokenized'],
           'targets': pair['large']['prediction']}  # fmt: skip
    lines[is_held_back(pair['id'], caution.held_back)].append(json.dumps(row) + '\n')
  for side, name in ((False, 'train'), (True, 'held_back')):
    files.write(files.absolute(folder) / f'{name}.jsonl', ''.join(lines[side]))


def held_back(
  audited: AuditedRows,
  candidate: str,
  reign: Reign,
  caution: Caution,
  *,
  labeled: Collection[str | None] | None,
) -> tuple[list[dict[str, Any]], Predictions]:
  """Audited rows of the policy in force that are held back, and a table of answers to them.

  Args:
    audited: Audited rows.
    candidate: Directory of a table of answers of another checkpoint.
    reign: The policy in force.
    caution: Care with which policies are replaced.
    labeled: Ids that have a label; None for all.

  Raises:
    ValueError: The table has answers to hardly any of them.
  """
  (table,) = shards.read(files.absolute(candidate))
  position = {id: row for row, id in enumerate(table.ids)}
  start = max(reign.start, len(audited) - caution.window)
  pairs = [
    pair
    for pair in audited.rows(start, len(audited))
    if is_held_back(pair['id'], caution.held_back) and pair['id'] in position
    and (labeled is None or pair['id'] in labeled)
  ]  # fmt: skip
  sides = [calibrates(pair['id']) for pair in pairs]
  if min(sides.count(True), sides.count(False)) < LEAST_ROWS // 2:
    raise ValueError(
      f'CANDIDATE={candidate!r:.200} has answers to {len(pairs)} of the audited prompts from row '
      f'{start} on that are held back: answer EXPORT/held_back.jsonl with `infer`.'
    )
  return pairs, alignment.select(table, [position[pair['id']] for pair in pairs])


def follow_link(link: str | None, journal: Journal) -> None:
  """Point a link to the small model of the policy in force, if it names one."""
  checkpoint = journal.policy and journal.policy.models['small'].get('checkpoint')
  if link is None or not checkpoint:
    return
  path = files.absolute(link)
  if os.path.lexists(path) and not os.path.islink(path):
    raise ValueError(f'SMALL_LINK={link!r:.200} is no symbolic link: it would be overwritten.')
  if not os.path.islink(path) or os.readlink(path) != str(checkpoint):
    temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex}'
    os.symlink(str(checkpoint), temporary)
    os.replace(temporary, path)
