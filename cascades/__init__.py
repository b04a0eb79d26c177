"""Language-model cascades: a small model answers what it can, a large one answers the rest.

Programs: `python -m cascades.train`, `infer`, `evaluate`, `browse_tasks` and others.
Importing this package imports neither JAX nor TensorFlow.
"""

import sys

from cascades.runtime import environment

__version__ = '0.1.0'

environment.warn_of_namesake()

# While `python -m cascades.train` looks for the module, argv[0] is '-m'. The module imports JAX,
# which reads the environment then: this is the last moment to set it.
if sys.argv[:1] == ['-m']:
  environment.prepare()
  environment.end_on_interrupt()
  if environment.asks_for_help(sys.argv):
    from cascades import cli

    cli.help_and_exit(sys.orig_argv)  # before the program imports JAX
