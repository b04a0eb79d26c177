"""Responses of endpoints on disk, so that no answer is paid for twice."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from etils import epath

from cascades.runtime import files

log = logging.getLogger(__name__)

DIRECTORY = '~/.cache/cascades/responses'


class Response(msgspec.Struct):
  """A response as the server sent it, what it answers, and the time that it took."""

  url: str
  request: dict[str, Any]
  response: dict[str, Any]
  seconds: float


class Responses(NamedTuple):
  """A directory with one file a response, named by a digest of URL and request.

  The request holds the model, every parameter and the prompt; keys are in headers, and never here.
  Files are written atomically, so that several runs may share the directory.
  """

  directory: epath.Path

  def read(self, url: str, request: Mapping[str, Any]) -> Response | None:
    """The stored response; None if there is none, or its file is damaged."""
    path = self._path(url, request)
    try:
      stored = msgspec.convert(json.loads(path.read_bytes()), Response)
    except FileNotFoundError:
      return None
    except (ValueError, RecursionError) as error:
      log.warning('%s is damaged, and its request is sent again: %s', path, error)
      return None
    return stored if stored.url == url and stored.request == request else None

  def write(self, response: Response) -> None:
    """Store a response."""
    text = json.dumps(msgspec.to_builtins(response), ensure_ascii=True)
    files.write(self._path(response.url, response.request), text)

  def _path(self, url: str, request: Mapping[str, Any]) -> epath.Path:
    content = json.dumps([url, request], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return self.directory / digest[:2] / f'{digest}.json'
