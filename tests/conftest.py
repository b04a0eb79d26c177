"""Eight virtual devices for every test, set before anything imports JAX."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
# More than one CPU device a process starves XLA's thread pool unless it is told of more cores.
os.environ['NPROC'] = '32'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
