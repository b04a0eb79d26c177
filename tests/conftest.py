"""Eight virtual devices and quick compiles for every test, set before anything imports JAX."""

import os
import signal
import tempfile

import pytest
from hypothesis import HealthCheck, settings

os.environ['JAX_PLATFORMS'] = 'cpu'
# A shell that starts tests in the background lets them, and their processes, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
# More than one CPU device a process starves XLA's thread pool unless it is told of more cores.
os.environ['NPROC'] = '32'
# Compiling is nearly all the time that tests take, and most of it is LLVM's optimisation.
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    '--xla_backend_optimization_level=0',
    '--xla_cpu_use_fusion_emitters=false',
  ]
)
# Programs that tests start as processes of their own share what they compile, as do the workers
# that pytest-xdist starts in this environment. The folder goes with the process that made it.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  COMPILED = tempfile.TemporaryDirectory(prefix='cascades-jax-cache-')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = COMPILED.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'

# Examples are timed on machines that are busy with something else.
settings.register_profile('patient', deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('patient')

pytest_plugins = ['tests.tiny_tasks']

# Longest first, so that at the end no worker is busy with one of them while the others idle.
# pytest-xdist would put files of many tests first, and these have few.
LONGEST_FILES = (
  'survival_test.py', 'train_test.py', 'survival_processes_test.py', 'train_step_test.py',
  'starts_test.py', 'plan_test.py', 'processes_test.py', 'recipes_test.py', 'examples_test.py',
)  # fmt: skip


def pytest_collection_modifyitems(items):
  order = {name: index for index, name in enumerate(LONGEST_FILES)}
  items.sort(key=lambda item: order.get(item.path.name, len(order)))
  for item in items:
    if item.get_closest_marker('slow'):
      item.add_marker(pytest.mark.timeout(3600))
