"""A bucket for tests: the folder behind `gs://` paths, for Python and for TensorStore alike.

Python's side is a backend of etils.epath that cannot rename; TensorStore, through which Orbax
writes arrays, speaks HTTP to a small server of the storage service's interface. Nothing leaves
this machine.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import pathlib
import threading
from collections.abc import Iterator
from typing import Any
from urllib import parse

from etils.epath import backend


class Bucket(backend._OsPathBackend):
  """Object stores have objects that appear whole, and no renaming."""

  def __init__(self, root: pathlib.Path):
    self.root = root

  def __getattribute__(self, name: str) -> Any:
    if name.startswith('__') or name in ('root', 'rename', 'replace', 'glob', 'walk'):
      return object.__getattribute__(self, name)
    method = object.__getattribute__(self, name)

    def local(path: Any, *args: Any, **options: Any) -> Any:
      return method(self._local(path), *args, **options)

    return method if name.startswith('_') else local

  def _local(self, path: Any) -> str:
    return str(path).replace('gs://', f'{self.root}/')

  def _remote(self, path: Any) -> str:
    return str(path).replace(f'{self.root}/', 'gs://')

  def glob(self, path: Any) -> list[str]:
    return [self._remote(found) for found in super().glob(self._local(path))]

  def walk(self, path: Any, **options: Any) -> Iterator[Any]:
    for root, folders, files in super().walk(self._local(path), **options):
      yield self._remote(root), folders, files

  def rename(self, *_: Any) -> Any:
    raise AssertionError('object stores do not rename')

  replace = rename


class _Handler(http.server.BaseHTTPRequestHandler):
  """Objects are files; the time of their last change numbers their generations."""

  root: pathlib.Path

  def log_message(self, *_: Any) -> None:
    pass

  def _answer(self, status: int, body: bytes = b'', **headers: str) -> None:
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def _request(self) -> tuple[pathlib.Path, str | None, dict[str, str]]:
    """The bucket's folder, the object's name, the query."""
    url = parse.urlsplit(self.path)
    query = dict(parse.parse_qsl(url.query))
    _, _, rest = url.path.partition('/b/')
    bucket, _, name = rest.partition('/o')
    return self.root / bucket, parse.unquote(name.lstrip('/')) or query.get('name'), query

  @staticmethod
  def _generation(path: pathlib.Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0

  def _described(self, folder: pathlib.Path, path: pathlib.Path) -> dict[str, str]:
    return {
      'name': str(path.relative_to(folder)),
      'generation': str(self._generation(path)),
      'size': str(path.stat().st_size),
      'updated': '2020-01-01T00:00:00Z',
    }

  def _refused(self, path: pathlib.Path, query: dict[str, str]) -> bool:
    generation = str(self._generation(path))
    wanted, unwanted = query.get('ifGenerationMatch'), query.get('ifGenerationNotMatch')
    return (wanted is not None and wanted != generation) or unwanted == generation

  def do_GET(self) -> None:
    folder, name, query = self._request()
    if name is None:
      files = sorted(path for path in folder.rglob('*') if path.is_file())
      items = [self._described(folder, path) for path in files]
      prefix = query.get('prefix', '')
      found = [item for item in items if item['name'].startswith(prefix)]
      return self._answer(200, json.dumps({'items': found}).encode())
    path = folder / name
    if not path.is_file():
      return self._answer(404)
    if self._refused(path, query):
      return self._answer(304 if 'ifGenerationNotMatch' in query else 412)
    data = path.read_bytes()
    generation = {'x_goog_generation': str(self._generation(path))}
    if query.get('alt') != 'media':
      return self._answer(200, json.dumps(self._described(folder, path)).encode())
    if wanted := self.headers.get('Range'):
      first, _, last = wanted.removeprefix('bytes=').partition('-')
      begin = int(first) if first else len(data) - int(last)
      end = min(int(last), len(data) - 1) if first and last else len(data) - 1
      span = f'bytes {begin}-{end}/{len(data)}'
      return self._answer(206, data[begin : end + 1], Content_Range=span, **generation)
    return self._answer(200, data, **generation)

  def do_POST(self) -> None:
    folder, name, query = self._request()
    data = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    path = folder / str(name)
    if self._refused(path, query):
      return self._answer(412)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return self._answer(200, json.dumps(self._described(folder, path)).encode())

  def do_DELETE(self) -> None:
    folder, name, query = self._request()
    path = folder / str(name)
    if not path.is_file():
      return self._answer(404)
    if self._refused(path, query):
      return self._answer(412)
    path.unlink()
    return self._answer(204)


@contextlib.contextmanager
def serve(root: pathlib.Path) -> Iterator[dict[str, str]]:
  """Serve the buckets below `root` on loopback; yields TensorStore's environment."""
  handler = type('Handler', (_Handler,), {'root': root})
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield {
      'TENSORSTORE_GCS_HTTP_URL': f'http://127.0.0.1:{server.server_port}',
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',
    }
    server.shutdown()
    thread.join()


def install(root: pathlib.Path) -> None:
  """Let `gs://` mean `root` in this process, without the storage service's own client."""
  from etils.epath import gpath
  from orbax.checkpoint._src.path import gcs_utils

  gpath._PREFIX_TO_BACKEND['gs'] = Bucket(root)
  gpath._is_tf_installed = lambda: False
  gcs_utils.get_bucket = lambda name: None  # a bucket without a hierarchical namespace
