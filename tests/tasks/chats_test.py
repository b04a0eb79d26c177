import json

import pytest
import tokenizers

from cascades.tasks import chats, layouts, records, vocabularies
from cascades.tasks.task import Row, both
from tests.tasks.conftest import tiny_task

CHATML = (
  "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
  "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
  "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
  "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system.') }}"
  "{% endif %}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' "
  "+ message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{{ '<start_of_turn>model\n' }}"
)
ROWS = [Row('0', 'How far?', ('Far.',)), Row('1', 'Two\nlines {x}', ('No.',))]
ASKED = '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n'
ANSWERS = '<|im_start|>assistant\n'


def folder(place, template, **tokens):
  config = {'chat_template': template, **tokens}
  (place / 'tokenizer_config.json').write_text(json.dumps(config))
  return place


def vocabulary(directory):
  """Characters, and the special tokens of chats."""
  specials = ['<pad>', '<|im_start|>', '<|im_end|>', '<bos>', '<start_of_turn>', '<end_of_turn>']
  characters = sorted({chr(i) for i in range(32, 127)} | {'\n'})
  model = tokenizers.models.BPE(
    {token: i for i, token in enumerate([*specials, *characters])}, [], unk_token='<pad>'
  )
  made = tokenizers.Tokenizer(model)
  made.decoder = tokenizers.decoders.Fuse()
  made.add_special_tokens(specials)
  made.save(str(directory / 'tokenizer.json'))
  return lambda **ids: vocabularies.huggingface(directory, pad='<pad>', **ids)


def test_a_prompt_by_hand(tmp_path):
  template = chats.read(folder(tmp_path, CHATML))
  assert template('Hi {{ x }}') == ASKED.format('Hi {{ x }}') + ANSWERS


def test_what_the_system_says_comes_first(tmp_path):
  template = chats.read(folder(tmp_path, CHATML), system='Speak Latin.')
  asked = '<|im_start|>system\nSpeak Latin.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n'
  assert template('Hi') == asked + ANSWERS


def test_special_tokens_are_spelled_as_the_folder_says(tmp_path):
  told = {'content': '<bos>', 'lstrip': False}
  template = chats.read(folder(tmp_path, GEMMA, bos_token=told))
  assert template(' Hi ').startswith('<bos><start_of_turn>user\nHi<end_of_turn>')


def test_a_template_of_its_own_file_comes_first(tmp_path):
  folder(tmp_path, CHATML)
  (tmp_path / 'chat_template.jinja').write_text("{{ messages[0]['content'] }}!")
  assert chats.read(tmp_path)('Hi') == 'Hi!'


def test_of_several_templates_the_default_is_taken(tmp_path):
  several = [{'name': 'tool_use', 'template': 'x'}, {'name': 'default', 'template': 'y'}]
  assert chats.read(folder(tmp_path, several))('Hi') == 'y'


def test_a_folder_without_template_is_named(tmp_path):
  with pytest.raises(ValueError, match='has no chat template'):
    chats.read(folder(tmp_path, None))


@pytest.mark.parametrize(
  ('template', 'message'),
  [(GEMMA, 'cannot write this prompt: No system.'), ('{% if', 'not one of Jinja')],
)
def test_a_template_that_refuses_says_why(template, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    chats.read(folder(tmp_path, template), system='Be brief.')('Hi')


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path):
  attack = '{{ messages.__class__.__mro__[1].__subclasses__() }}'
  with pytest.raises(ValueError, match='cannot write this prompt'):
    chats.read(folder(tmp_path, attack))('Hi')


@pytest.mark.parametrize(
  ('template', 'ids', 'expected'),
  [
    (CHATML, {'eos': ['<|im_end|>']}, ASKED.format('{}') + ANSWERS),
    (
      GEMMA,
      {'eos': ['<end_of_turn>'], 'bos': '<bos>'},
      '<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n',
    ),
  ],
  ids=['without a beginning', 'with a beginning'],
)
def test_the_model_reads_the_template_and_the_table_the_text(template, ids, expected, tmp_path):
  made = vocabulary(tmp_path)(**ids)
  folder(tmp_path, template, bos_token='<bos>')
  task = chats.chat(tiny_task(ROWS), tmp_path)
  found = records.materialize(task, 'train', both(made), tmp_path / 'records')
  layout = layouts.of(found, layouts.decoder_only, {'inputs': 200, 'targets': 8})
  for record, row in zip(found.read(range(len(found))), tiny_task(ROWS).rows('train'), strict=True):
    assert record.row == row
    read = [i for piece in layout.example(record.inputs, record.targets).left for i in piece]
    token = made._tokenizer.id_to_token
    assert ''.join(token(int(i)) for i in read) == expected.replace('{}', row.inputs)


def test_a_continued_prompt_is_followed_by_nothing(tmp_path):
  made = vocabulary(tmp_path)(eos=['<|im_end|>'])
  task = chats.continuation(tiny_task(ROWS), tmp_path)
  found = records.materialize(task, 'train', both(made), tmp_path / 'records')
  layout = layouts.of(found, layouts.decoder_only, {'inputs': 200, 'targets': 8})
  (record,) = found.read([0])
  example = layout.example(record.inputs, record.targets)
  assert [i for piece in example.left for i in piece] == made.encode(record.row.inputs)
  assert [i for piece in example.right for i in piece][-1] == made.eos_id


def test_other_templates_make_other_records(tmp_path):
  plain = tiny_task(ROWS)
  dressed = [
    chats.continuation(plain, tmp_path),
    chats.chat(plain, folder(tmp_path, CHATML)),
    chats.chat(plain, folder(tmp_path, CHATML), system='Be brief.'),
  ]
  versions = {task.version for task in (plain, *dressed)}
  assert len(versions) == 4


@pytest.mark.reference
@pytest.mark.parametrize('template', [CHATML, GEMMA], ids=['chatml', 'gemma'])
def test_prompts_are_those_of_transformers(template, tmp_path):
  transformers = pytest.importorskip('transformers', reason='needs the extra `reference`')
  vocabulary(tmp_path)
  folder(tmp_path, template, bos_token='<bos>', tokenizer_class='PreTrainedTokenizerFast')
  reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for text in ('Hi', ' two\nlines {{ x }} ', '"quoted" & <tags>', 'Привет 日本'):
    expected = reference.apply_chat_template(
      [{'role': 'user', 'content': text}], add_generation_prompt=True, tokenize=False
    )
    assert chats.read(tmp_path)(text) == expected
