"""The OpenAPI description of the server, from the types of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cascades import __version__
from cascades.serving.request_forms import ChatRequest, CompletionRequest

REFERENCE = '#/components/schemas/{name}'
BOUNDED = ('max_tokens', 'max_completion_tokens')

STATUSES: Mapping[str, str] = {
  '400': 'The request is not understood, or the model cannot answer it',
  '401': 'A key is expected',
  '404': 'There is no such model',
  '408': 'The body has not arrived in time',
  '413': 'The body is too large',
  '415': 'The body is not application/json',
  '421': 'The server is not called by this name',
  '429': 'Too many requests; Retry-After says when to try again',
  '500': 'A fault of the server',
  '503': 'A model cannot answer now, or the server is shutting down',
}


def description(models: Sequence[str], max_tokens: int) -> dict[str, Any]:
  """The description.

  Args:
    models: Names that the field `model` takes.
    max_tokens: Longest answer in tokens.
  """
  forms = (ChatRequest, CompletionRequest)
  _, components = msgspec.json.schema_components(forms, ref_template=REFERENCE)
  for form in forms:
    fields = components[form.__name__]['properties']
    fields['model'] = {'type': 'string', 'enum': list(models)}
    for name in BOUNDED:
      if name in fields:
        for numbers in fields[name]['anyOf']:
          if 'maximum' in numbers:
            numbers['maximum'] = max_tokens
  answers = {'chat': ChatRequest, 'completions': CompletionRequest}
  paths = {
    f'/v1/{"chat/" if api == "chat" else ""}completions': {'post': _answer(api, form.__name__)}
    for api, form in answers.items()
  }
  return {
    'openapi': '3.1.0',
    'info': {'title': 'A cascade of language models', 'version': __version__},
    'paths': {
      **paths,
      '/v1/models': {'get': _get('List the cascade and its models', _MODELS, '401')},
      '/v1/models/{name}': {
        'get': _get('Describe a model', _MODEL, '401', '404')
        | {
          'parameters': [
            {
              'name': 'name', 'in': 'path', 'required': True,
              'schema': {'type': 'string', 'enum': list(models)},
            }
          ]
        }
      },
      '/v1/cascade/status': {
        'get': _get('The last exchanges, without texts', {'type': 'object'}, '400', '401')
        | {
          'parameters': [
            {
              'name': 'since', 'in': 'query', 'required': False,
              'schema': {'type': 'integer', 'minimum': 0, 'maximum': 10**15 - 1},
            }
          ]
        }
      },
      '/healthz': {'get': _get('Say that the process runs', _object('status'))},
      '/readyz': {
        'get': _get('Say whether requests can be answered', _READY, documented={'503': _READY})
      },
      '/openapi.json': {'get': _get('This description', {'type': 'object'})},
    },
    'components': {
      'schemas': {**components, 'Error': _ERROR, 'Cascade': _CASCADE},
      'securitySchemes': {'key': {'type': 'http', 'scheme': 'bearer'}},
    },
  }  # fmt: skip


def _object(*required: str, **properties: Any) -> dict[str, Any]:
  return {'type': 'object', 'required': [*required], 'properties': properties}


def _content(schema: Mapping[str, Any]) -> dict[str, Any]:
  return {'application/json': {'schema': schema}}


def _errors(*statuses: str) -> dict[str, Any]:
  schema = {'$ref': REFERENCE.format(name='Error')}
  return {
    status: {'description': STATUSES[status], 'content': _content(schema)} for status in statuses
  }


def _get(
  summary: str,
  schema: Mapping[str, Any],
  *statuses: str,
  documented: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  more = {
    status: {'description': STATUSES[status], 'content': _content(other)}
    for status, other in (documented or {}).items()
  }
  ok = {'description': 'OK', 'content': _content(schema)}
  return {
    'summary': summary,
    'responses': {'200': ok, **_errors(*statuses), **more},
    **({'security': [{}, {'key': []}]} if '401' in statuses else {}),
  }


def _answer(api: str, form: str) -> dict[str, Any]:
  schema = {'$ref': REFERENCE.format(name=form)}
  events = {'text/event-stream': {'schema': _object('data', data={'type': 'string'})}}
  ok = {'description': 'The answer', 'content': {**_content(_ANSWERS[api]), **events}}
  return {
    'summary': 'Answer a chat' if api == 'chat' else 'Continue or answer a text',
    'requestBody': {'required': True, 'content': _content(schema)},
    'responses': {'200': ok, **_errors(*STATUSES)},
    'security': [{}, {'key': []}],
  }


_NUMBER = {'type': ['number', 'null']}
_COUNT = {'type': 'integer', 'minimum': 0}
_CASCADE = _object(
  'author', 'score', 'threshold', 'deferred', 'flag', 'discarded_tokens', 'levels', 'router',
  'audit', 'models', 'ignored',
  author={'type': ['string', 'null']}, router={'type': ['object', 'null']},
  audit={'type': 'boolean'}, levels={'type': 'array'},
  score=_NUMBER, threshold=_NUMBER, deferred={'type': 'boolean'}, flag={'type': 'string'},
  discarded_tokens=_COUNT, dollars=_NUMBER, models={'type': 'array'}, ignored={'type': 'array'},
)  # fmt: skip
_USAGE = _object(
  'prompt_tokens', 'completion_tokens', 'total_tokens',
  prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT,
)  # fmt: skip
_TEXT = {'type': ['string', 'null']}
_MESSAGE = _object('role', 'content', role={'const': 'assistant'}, content=_TEXT, refusal=_TEXT)
_FINISH = {'enum': ['stop', 'length']}
_CHOICES = {
  'chat': _object('index', 'message', 'finish_reason', message=_MESSAGE, finish_reason=_FINISH),
  'completions': _object(
    'index', 'text', 'finish_reason', text={'type': 'string'}, finish_reason=_FINISH
  ),
}
_ANSWERS = {
  api: _object(
    'id', 'object', 'created', 'model', 'choices', 'usage', 'cascade',
    id={'type': 'string'}, created=_COUNT, model={'type': 'string'},
    object={'const': 'chat.completion' if api == 'chat' else 'text_completion'},
    choices={'type': 'array', 'items': choice, 'minItems': 1, 'maxItems': 1},
    usage=_USAGE, cascade={'$ref': REFERENCE.format(name='Cascade')},
  )
  for api, choice in _CHOICES.items()
}  # fmt: skip
_MODEL = _object('id', 'object', 'owned_by', id={'type': 'string'}, object={'const': 'model'})
_MODELS = _object(
  'object', 'data', object={'const': 'list'}, data={'type': 'array', 'items': _MODEL}
)
_READY = _object(
  'ready', 'reasons', ready={'type': 'boolean'}, reasons={'type': 'array'}, notes={'type': 'object'}
)
_ERROR = _object(
  'error',
  error=_object(
    'message', 'type', 'param', 'code',
    message={'type': 'string'}, type={'type': 'string'}, param=_TEXT, code=_TEXT,
  ),
)  # fmt: skip
