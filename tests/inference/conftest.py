"""The server that tests of endpoints ask."""

import pytest

from cascades.inference import endpoint_client
from tests import openai_server


@pytest.fixture
def server(monkeypatch):
  """A server on a real socket; the client waits little between tries."""
  monkeypatch.setattr(endpoint_client, 'FIRST_WAIT', 0.01)
  with openai_server.running() as running:
    yield running
