"""Language-model cascades: a small model answers what it can, a large one answers the rest.

Programs: `python -m cascades.train`, `infer`, `evaluate`, `browse_tasks` and others.
Importing this package imports neither JAX nor TensorFlow.
"""

__version__ = '0.1.0'
