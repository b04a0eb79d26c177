"""The file of a policy, read again whenever it changes.

A file that is damaged, or of other models, changes nothing: the server keeps the policy that it
has, and says so in its log and at /readyz.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, MutableMapping

from cascades.runtime import files
from cascades.serving.served_policy import ServedPolicy

log = logging.getLogger(__name__)


class LivePolicy:
  """Watches the file of a policy."""

  def __init__(
    self,
    path: str,
    read: Callable[[], ServedPolicy],
    apply: Callable[[ServedPolicy], None],
    notes: MutableMapping[str, str],
    *,
    setting: str = 'POLICY',
  ):
    """Prepares to watch; the file has been read, and applied, once.

    Args:
      path: The file.
      read: Reads and checks it.
      apply: Puts a policy into effect.
      notes: Remarks for operators.
      setting: Name of the setting that names the file.
    """
    self._path, self._read, self._apply = files.absolute(path), read, apply
    self._notes, self._setting = notes, setting
    self._digest = self._current()

  def _current(self) -> str:
    """Digest of the file; '' without a file."""
    try:
      return hashlib.sha256(self._path.read_bytes()).hexdigest()
    except OSError:
      return ''

  async def look(self) -> bool:
    """Read the file if it has changed; True if a new policy is in effect."""
    digest = await asyncio.to_thread(self._current)
    if digest == self._digest:
      return False
    self._digest = digest
    try:
      policy = await asyncio.to_thread(self._read)
    except (OSError, ValueError) as error:
      self._notes[self._setting] = f'The policy before is kept, since {error}'
      log.warning('%s', self._notes[self._setting])
      return False
    self._apply(policy)
    self._notes.pop(self._setting, None)
    log.info('%s: %s is in effect.', self._setting, self._path)
    return True

  async def watch(self, seconds: float) -> None:
    """Look every so many seconds."""
    while True:
      await asyncio.sleep(seconds)
      await self.look()
