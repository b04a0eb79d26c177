import io
import json

import pytest
import sentencepiece
import tokenizers

from cascades.data import converters, materialize, prompts
from cascades.tasks import chat_templates, chats
from cascades.tasks.task import Row, both
from cascades.tokenizers import vocabularies
from tests.tiny_tasks import tiny_task

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
TURNS = '<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n'


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
  template = chat_templates.read(folder(tmp_path, CHATML))
  assert template('Hi {{ x }}') == ASKED.format('Hi {{ x }}') + ANSWERS


def test_what_the_system_says_comes_first(tmp_path):
  template = chat_templates.read(folder(tmp_path, CHATML), system='Speak Latin.')
  asked = '<|im_start|>system\nSpeak Latin.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n'
  assert template('Hi') == asked + ANSWERS


def test_special_tokens_are_spelled_as_the_folder_says(tmp_path):
  told = {'content': '<bos>', 'lstrip': False}
  template = chat_templates.read(folder(tmp_path, GEMMA, bos_token=told))
  assert template(' Hi ').startswith('<bos><start_of_turn>user\nHi<end_of_turn>')


def test_a_template_of_its_own_file_comes_first(tmp_path):
  folder(tmp_path, CHATML)
  (tmp_path / 'chat_template.jinja').write_text("{{ messages[0]['content'] }}!")
  assert chat_templates.read(tmp_path)('Hi') == 'Hi!'


def test_of_several_templates_the_default_is_taken(tmp_path):
  several = [{'name': 'tool_use', 'template': 'x'}, {'name': 'default', 'template': 'y'}]
  assert chat_templates.read(folder(tmp_path, several))('Hi') == 'y'


def test_a_folder_without_template_is_named(tmp_path):
  with pytest.raises(ValueError, match='has no chat template'):
    chat_templates.read(folder(tmp_path, None))


def test_a_damaged_file_is_named(tmp_path):
  (tmp_path / 'tokenizer_config.json').write_text('{"chat_template": "')
  with pytest.raises(ValueError, match=r'tokenizer_config\.json is damaged'):
    chat_templates.read(tmp_path)


@pytest.mark.parametrize(
  ('template', 'message'),
  [(GEMMA, 'cannot write this prompt: No system.'), ('{% if', 'not valid Jinja')],
)
def test_a_template_that_refuses_says_why(template, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    chat_templates.read(folder(tmp_path, template), system='Be brief.')('Hi')


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path):
  attack = '{{ messages.__class__.__mro__[1].__subclasses__() }}'
  with pytest.raises(ValueError, match='cannot write this prompt'):
    chat_templates.read(folder(tmp_path, attack))('Hi')


@pytest.mark.parametrize(
  ('template', 'bos_token', 'ids', 'expected'),
  [
    (CHATML, '<bos>', {'eos': ['<|im_end|>']}, ASKED + ANSWERS),
    (CHATML, '<|im_start|>', {'eos': ['<|im_end|>'], 'bos': ''}, ASKED + ANSWERS),
    (CHATML, '<|im_start|>', {'eos': ['<|im_end|>'], 'bos': '<bos>'}, ASKED + ANSWERS),
    (GEMMA, '<bos>', {'eos': ['<end_of_turn>'], 'bos': '<bos>'}, f'<bos>{TURNS}'),
    (GEMMA, '<bos>', {'eos': ['<end_of_turn>'], 'bos': ''}, f'<bos>{TURNS}'),
  ],
  ids=[
    'no beginning',
    'a beginning that the vocabulary has not',
    'another beginning than the vocabulary has',
    'the one of both',
    'one that is a mere token',
  ],
)
def test_the_model_reads_the_template_and_the_table_the_text(
  template, bos_token, ids, expected, tmp_path
):
  made = vocabulary(tmp_path)(**ids)
  folder(tmp_path, template, bos_token=bos_token)
  task = chats.chat(tiny_task(ROWS), tmp_path)
  found = materialize.materialize(task, 'train', both(made), tmp_path / 'records')
  converter = converters.feature_converter(
    found, converters.decoder_only, {'inputs': 200, 'targets': 8}
  )
  for record, row in zip(found.read(range(len(found))), tiny_task(ROWS).rows('train'), strict=True):
    assert record.row == row
    read = [i for piece in converter.example(record.inputs, record.targets).context for i in piece]
    token = made._tokenizer.id_to_token
    assert ''.join(token(int(i)) for i in read) == expected.replace('{}', row.inputs)


def test_sentencepiece_begins_with_the_token_that_it_reads_in_no_text(tmp_path):
  written = io.BytesIO()
  sentencepiece.SentencePieceTrainer.Train(
    sentence_iterator=iter([row.inputs for row in ROWS]),
    model_writer=written,
    model_type='char',
    vocab_size=30,
    hard_vocab_limit=False,
    bos_piece='<bos>',
    user_defined_symbols=['<start_of_turn>', '<end_of_turn>', '\n'],
    add_dummy_prefix=False,
    minloglevel=2,
  )
  (tmp_path / 'tokenizer.model').write_bytes(written.getvalue())
  made = vocabularies.sentencepiece(tmp_path / 'tokenizer.model')
  assert len(made.encode('<bos>')) > 1
  task = chats.chat(tiny_task(ROWS), folder(tmp_path, GEMMA, bos_token='<bos>'))
  found = materialize.materialize(task, 'train', both(made), tmp_path / 'records')
  for record in found.read(range(len(found))):
    text = TURNS.replace('{}', record.row.inputs)
    assert record.inputs.tolist() == [made.bos_id, *made.encode(text)]


@pytest.mark.parametrize(
  ('template', 'end'),
  [(GEMMA, '<end_of_turn>'), (CHATML, '<|im_end|>'), ('{{ messages[0].content }}', '<pad>')],
  ids=['the second end', 'the third end', 'none, so the first'],
)
def test_answers_and_options_end_as_the_template_ends_them(template, end, tmp_path):
  made = vocabulary(tmp_path)(eos=['<pad>', '<end_of_turn>', '<|im_end|>'])
  rows = [Row('0', 'Far?', ('No.',), ('Yes.', 'No.'), 1)]
  task = chats.chat(tiny_task(rows), folder(tmp_path, template, bos_token='<bos>'))
  found = materialize.materialize(task, 'train', both(made), tmp_path / 'records')
  (record,) = found.read([0])
  expected = [made.encode(f'{answer}{end}') for answer in ('No.', 'Yes.', 'No.')]
  assert [ids.tolist() for ids in (record.targets, *record.options)] == expected
  converter = converters.feature_converter(
    found, converters.decoder_only, {'inputs': 200, 'targets': 8}
  )
  assert [i for piece in converter.example(*record[1:3]).targets for i in piece] == expected[0]


@pytest.mark.parametrize('room', [0, 1])
def test_only_answers_that_lose_tokens_are_counted_as_trimmed(room, tmp_path, caplog):
  made = vocabulary(tmp_path)(eos=['<|im_end|>'])
  task = chats.chat(tiny_task(ROWS[:1]), folder(tmp_path, CHATML))
  found = materialize.materialize(task, 'train', both(made), tmp_path / 'records')
  lengths = {'inputs': 200, 'targets': len('Far.') + room}
  settings = {'convert': converters.decoder_only, 'lengths': lengths, 'batch_size': 1}
  assert len(list(prompts.score_batches(found, [0], **settings))) == 1
  assert ('1 scored answers are longer' in caplog.text) == (room == 0)


@pytest.mark.parametrize('form', [chats.chat, chats.continuation])
def test_a_prompt_to_go_on_with_is_not_trimmed(form, tmp_path):
  made = vocabulary(tmp_path)(eos=['<|im_end|>'])
  task = form(tiny_task(ROWS), folder(tmp_path, CHATML))
  found = materialize.materialize(task, 'train', both(made), tmp_path / 'records')
  longest = int(found.lengths[:, 0].max())
  settings = {'convert': converters.decoder_only, 'lengths': {'inputs': longest, 'targets': 8}}
  assert prompts.prompt_lengths(found, **settings).max() == longest
  settings['lengths'] = {'inputs': longest - 1, 'targets': 8}
  with pytest.raises(ValueError, match=rf"raise task_feature_lengths\['inputs'\] to {longest}"):
    prompts.prompt_lengths(found, **settings)
  with pytest.raises(ValueError, match=f'tiny, split train has prompts of up to {longest} tokens'):
    list(prompts.score_batches(found, [0], **settings, batch_size=1))


def test_a_continued_prompt_is_followed_by_nothing(tmp_path):
  made = vocabulary(tmp_path)(eos=['<|im_end|>'])
  task = chats.continuation(tiny_task(ROWS), tmp_path)
  found = materialize.materialize(task, 'train', both(made), tmp_path / 'records')
  converter = converters.feature_converter(
    found, converters.decoder_only, {'inputs': 200, 'targets': 8}
  )
  (record,) = found.read([0])
  example = converter.example(record.inputs, record.targets)
  assert [i for piece in example.context for i in piece] == made.encode(record.row.inputs)
  assert [i for piece in example.targets for i in piece][-1] == made.eos_id


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
    assert chat_templates.read(tmp_path)(text) == expected
