"""Hypothesis builds its tables of all characters once, which takes seconds on a busy machine."""

from hypothesis import HealthCheck, settings

settings.register_profile(
  'patient', deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50
)
settings.load_profile('patient')
