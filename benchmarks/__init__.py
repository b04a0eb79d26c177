"""Measurements: each a script that prints a table and writes JSON.

On the CPU unless JAX_PLATFORMS says otherwise, so that a compiler for TPUs that is installed does
not look for them.
"""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
