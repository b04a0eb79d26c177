"""Conformance to our own OpenAPI description, by schemathesis: requests that fit it, and others."""

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from cascades.serving import app
from cascades.serving.budgets import Ceilings, Ledger
from cascades.serving.calls import Conduct
from cascades.serving.cascade import ServedCascade
from cascades.serving.legs import Member
from cascades.serving.monitoring import Monitoring
from cascades.serving.service import HttpLimits, Service
from tests.serving.fake_models import FakeModel, rule
from tests.serving.running import LARGE, UNSURE

CHECKS = [
  not_a_server_error,
  checks.status_code_conformance,
  checks.content_type_conformance,
  checks.response_schema_conformance,
  checks.response_headers_conformance,
  checks.negative_data_rejection,
  checks.positive_data_acceptance,
  checks.missing_required_header,
  checks.unsupported_method,
]


def application():
  threshold = rule(0.5)
  monitoring = Monitoring(threshold, {}, None)
  cascade = ServedCascade(
    {'small': Member(FakeModel('mini', UNSURE)), 'large': Member(FakeModel('maxi', LARGE))},
    threshold,
    conduct=Conduct(),
    record=monitoring.record,
    ledger=Ledger(Ceilings()),
  )
  service = Service(cascade, limits=HttpLimits(max_tokens=16))
  return app.build(service, routes=monitoring.routes(service))


def conforms(count):
  """Send so many requests of each operation, and check every response; the operations' names."""
  schema = schemathesis.openapi.from_asgi('/openapi.json', application())
  names = []
  for result in schema.get_all_operations():
    operation = result.ok()
    for mode in schemathesis.GenerationMode:

      @hypothesis.given(operation.as_strategy(generation_mode=mode))
      @hypothesis.settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
      )  # fmt: skip
      def send(case):
        case.call_and_validate(checks=CHECKS)

      try:
        send()
      except hypothesis.errors.Unsatisfiable:  # nothing that could be wrong, as without a body
        assert mode == schemathesis.GenerationMode.NEGATIVE
      names.append(operation.label)
  return set(names)


def test_the_server_is_as_its_description_says():
  assert conforms(3) >= {
    'POST /v1/chat/completions', 'POST /v1/completions', 'GET /v1/models', 'GET /readyz',
    'GET /v1/models/{name}', 'GET /v1/cascade/status',
  }  # fmt: skip


@pytest.mark.slow
def test_the_server_is_as_its_description_says_for_many_requests():
  conforms(500)
