"""Templates of public models, shortened, render as transformers renders them.

`tests/golden/chat_templates/expected.json` is what transformers 5.24 writes, on `DATE`.
"""

from __future__ import annotations

import datetime
import itertools
import json
import pathlib

import pytest

from cascades.tasks import chat_templates

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'chat_templates'
TEMPLATES = sorted(path.stem for path in GOLDEN.glob('*.jinja'))
TOKENS = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
USERS = ('How far?', ' two\nlines {{ x }} "quoted" & <tags>\n', 'Привет 日本')
ANSWERS = (None, 'Far.', ' so\n\nfar <\u00e9>')
SYSTEMS = (None, 'Speak Latin.')
CASES = list(itertools.product(SYSTEMS, USERS, ANSWERS))
PROMPT = "{% for m in messages %}{{ m['content'] }}|{% endfor %}"


def template(name, system=None):
  source = (GOLDEN / f'{name}.jinja').read_text()
  return chat_templates.ChatTemplate(source, TOKENS, system)


def rendered(name):
  """(text, text of the last generation block) of every case."""
  turns = []
  for system, user, answer in CASES:
    text, generation = template(name, system).turn(user, answer)
    turns.append([text, generation and text[slice(*generation)]])
  return turns


@pytest.mark.parametrize('name', TEMPLATES)
def test_templates_render_as_in_transformers(name):
  expected = json.loads((GOLDEN / 'expected.json').read_text())
  assert rendered(name) == expected[name]


@pytest.mark.reference
def test_the_expected_texts_are_those_of_transformers(monkeypatch):
  utils = pytest.importorskip(
    'transformers.utils.chat_template_utils', reason='needs the extra `reference`'
  )

  class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
      return cls.fromisoformat(chat_templates.DATE)

  monkeypatch.setattr(utils, 'datetime', Fixed)
  expected = json.loads((GOLDEN / 'expected.json').read_text())
  for name in TEMPLATES:
    source = (GOLDEN / f'{name}.jinja').read_text()
    for (system, user, answer), case in zip(CASES, expected[name], strict=True):
      turns = {'system': system, 'user': user, 'assistant': answer}
      messages = [{'role': role, 'content': text} for role, text in turns.items() if text]
      (text,), spans = utils.render_jinja_template(
        [messages],
        chat_template=source,
        add_generation_prompt=answer is None,
        return_assistant_tokens_mask='{% generation %}' in source,
        **TOKENS,
      )
      block = text[slice(*spans[0][-1])] if spans and spans[0] else None
      assert [text, block] == case


def test_tools_and_documents_are_none():
  source = '{{ tools is none and documents is none and tools is defined }}'
  assert chat_templates.ChatTemplate(source, {})('x') == 'True'


def test_the_date_is_a_setting(tmp_path):
  (tmp_path / 'chat_template.jinja').write_text("{{ strftime_now('%d %b %Y') }}")
  assert chat_templates.read(tmp_path)('x') == '26 Jul 2024'
  assert chat_templates.read(tmp_path, date='2026-01-31')('x') == '31 Jan 2026'
  for wrong in ('today', '2024-13-01', 7):
    with pytest.raises(ValueError, match=r'chats\.chat\.date is .* in the form 2024-07-26'):
      chat_templates.read(tmp_path, date=wrong)


def test_the_map_of_special_tokens_is_read_as_in_transformers(tmp_path):
  (tmp_path / 'chat_template.jinja').write_text('{{ bos_token }}{{ eos_token }}{{ image_token }}')
  (tmp_path / 'special_tokens_map.json').write_text(json.dumps({'eos_token': {'content': '<e>'}}))
  config = {'bos_token': '<b>', 'eos_token': '</s>', 'extra_special_tokens': {'image_token': '<i>'}}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  assert chat_templates.read(tmp_path)('x') == '<b><e><i>'
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config | {'added_tokens_decoder': {}}))
  assert chat_templates.read(tmp_path)('x') == '<b></s><i>'  # then the map is of an older version


def test_several_templates_without_a_default_are_named(tmp_path):
  several = {'chat_template': [{'name': n, 'template': n} for n in ('rag', 'tool_use')]}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(several))
  with pytest.raises(
    ValueError, match='the chat templates rag, tool_use, and none is named default'
  ):
    chat_templates.read(tmp_path)


@pytest.mark.parametrize('damaged', [7, ['x'], {'default': 7}, [{'name': 'default'}]])
def test_a_template_of_another_type_is_named(damaged, tmp_path):
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'chat_template': damaged}))
  with pytest.raises(ValueError, match='chat template'):
    chat_templates.read(tmp_path)


@pytest.mark.parametrize(
  'source', ['{{ 1 / 0 }}', '{{ messages + 1 }}', '{{ "a" | int + "b" }}', '{{ none.x.y }}']
)
def test_a_template_that_fails_is_named(source):
  with pytest.raises(ValueError, match='The chat template cannot write this prompt'):
    chat_templates.ChatTemplate(source, {})('x')
