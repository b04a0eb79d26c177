"""What JAX reads when it is imported."""

import os

import pytest

from cascades.runtime import environment


@pytest.fixture
def variables(monkeypatch, tmp_path):
  """An environment without the variables that `prepare` sets."""
  names = ('JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS')
  for name in (*names, 'JAX_PLATFORMS', 'NPROC', 'XLA_FLAGS'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('HOME', str(tmp_path))
  return monkeypatch


def test_the_compilation_cache_lies_in_the_home(variables, tmp_path):
  environment.prepare()
  assert os.environ['JAX_COMPILATION_CACHE_DIR'] == str(tmp_path / '.cache' / 'cascades' / 'jax')


def test_variables_that_the_user_has_set_stay(variables):
  variables.setenv('JAX_COMPILATION_CACHE_DIR', '/elsewhere')
  variables.setenv('JAX_PLATFORMS', 'tpu')
  environment.prepare()
  assert os.environ['JAX_COMPILATION_CACHE_DIR'] == '/elsewhere'
  assert os.environ['JAX_PLATFORMS'] == 'tpu'


def test_virtual_devices_get_threads(variables):
  variables.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
  environment.prepare()
  assert os.environ['NPROC'] == '32'


@pytest.mark.parametrize(
  ('libtpu', 'accelerator', 'platforms'),
  [(True, False, 'cpu'), (True, True, None), (False, False, None)],
)
def test_libtpu_without_a_tpu_is_not_asked(variables, libtpu, accelerator, platforms):
  variables.setattr(environment.importlib.util, 'find_spec', lambda _: libtpu or None)
  variables.setattr(environment, 'has_accelerator', lambda: accelerator)
  environment.prepare()
  assert os.environ.get('JAX_PLATFORMS') == platforms


@pytest.mark.parametrize(
  ('nodes', 'attached'),
  [([], False), (['vfio/vfio', 'null'], False), (['accel0'], True), (['vfio/0'], True),
   (['nvidia0'], True), (['kfd'], True)],
)  # fmt: skip
def test_an_accelerator_is_known_by_its_device_file(nodes, attached, tmp_path):
  for node in nodes:
    (tmp_path / node).parent.mkdir(exist_ok=True)
    (tmp_path / node).touch()
  assert environment.has_accelerator(tmp_path) is attached
