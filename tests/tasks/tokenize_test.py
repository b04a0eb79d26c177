"""Answers behind a prompt have the tokens that the whole text has there."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import sentencepiece as spm
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from cascades.data import materialize
from cascades.tasks import chats, tokenize
from cascades.tasks.task import Row, Vocabularies, both
from cascades.tokenizers import vocabularies
from tests.tasks import chat_templates_test
from tests.tiny_tasks import tiny_task
from tests.tokenizers.huggingface_test import TEXTS, byte_level

SPECIAL = ['<unk>', '<s>', '</s>', '<|im_start|>', '<|im_end|>', '<|eot_id|>', '<end_of_turn>']
WORDS = [*TEXTS, 'Two boats: left the harbor. The answer is before']


def metaspace(prepend_scheme):
  """A tokenizer of the kind of Llama 2."""
  made = tokenizers.Tokenizer(models.BPE(unk_token='<unk>', fuse_unk=True, byte_fallback=True))
  made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=False)
  made.decoder = decoders.Sequence(
    [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
  )
  special = [*SPECIAL, *(f'<0x{i:02X}>' for i in range(256))]
  trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
  made.train_from_iterator([w for line in WORDS * 5 for w in line.split(' ')] + WORDS * 5, trainer)
  return made


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('vocabularies')


@pytest.fixture(scope='module', params=['first', 'always', 'byte-level', 'sentencepiece', 'bytes'])
def vocabulary(request, folder):
  if request.param == 'bytes':
    return vocabularies.bytes_vocabulary()
  if request.param == 'sentencepiece':
    spm.SentencePieceTrainer.Train(
      sentence_iterator=iter(WORDS * 5), model_prefix=str(folder / 'm'), vocab_size=420,
      model_type='bpe', byte_fallback=True, normalization_rule_name='identity',
      remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2, unk_id=0, bos_id=1,
      eos_id=2, user_defined_symbols=['\n', *SPECIAL[3:]],
    )  # fmt: skip
    return vocabularies.sentencepiece(folder / 'm.model')
  if request.param == 'byte-level':
    made = byte_level(texts=WORDS, special=SPECIAL, size=400)
  else:
    made = metaspace(request.param)
  made.save(str(folder / 'tokenizer.json'))
  return vocabularies.huggingface(folder, eos=['</s>', '<|im_end|>', '<|eot_id|>', '<end_of_turn>'])


def records(task, vocabulary):
  encode = task.tokenize or tokenize.row_by_row
  return list(encode(task.rows('train'), both(vocabulary), 0))


CONTINUED = [
  ('The answer:', ' left'),
  ('The answer:', 'left'),
  ('The answer: ', 'left'),
  ('The answer:  ', 'left the harbor'),
  ('The answer:\n', 'before'),
  ('The answer:\n ', 'before'),
  ('船は', '港を'),
]


@pytest.mark.parametrize(('prompt', 'answer'), CONTINUED)
def test_a_continued_text_has_its_own_tokens(prompt, answer, vocabulary):
  row = Row('0', prompt, (answer,), ('before', answer), 1)
  (record,) = records(chats.continuation(tiny_task([row]), folder='none'), vocabulary)
  whole = vocabulary.encode(prompt + answer)
  assert [*record.inputs, *record.targets] == whole
  assert [*record.inputs, *record.options[1]] == whole
  assert [*record.inputs, *record.options[0]] == vocabulary.encode(prompt + 'before')


def test_a_prompt_is_the_same_whatever_the_answer(vocabulary):
  rows = [Row(str(i), 'The answer: ', (a,)) for i, a in enumerate(['left', '', 'zzz', '...'])]
  made = records(chats.continuation(tiny_task(rows), folder='none'), vocabulary)
  assert len({tuple(record.inputs.tolist()) for record in made}) == 1
  assert len(made[1].targets) == 0


@pytest.mark.parametrize('kind', ['byte-level', 'first'])
@given(data=st.data())
def test_prompt_and_answer_spell_the_text(kind, data):
  """Also where a token contains the end of the prompt and the beginning of the answer."""
  made = LOSSLESS.setdefault(
    kind,
    byte_level(texts=WORDS, special=SPECIAL, size=400)
    if kind == 'byte-level'
    else metaspace('first'),
  )
  texts = st.text(alphabet=' \nabehlortTw:.', min_size=1, max_size=12)
  text = tokenize.PromptedAnswers('w' + data.draw(texts), (data.draw(texts),))

  class Fake(vocabularies.Bytes):
    def encode(self, text):
      return made.encode(text, add_special_tokens=False).ids

    def encode_all(self, texts):
      return [np.array(self.encode(text), 'i4') for text in texts]

  ((prompt, (answer,)),) = tokenize.behind([text], both(Fake(0)))
  ids = [*prompt.tolist(), *answer.tolist()]
  spelled = made.decode(ids, skip_special_tokens=False)
  assert spelled.lstrip(' ') == text.prompt + text.answers[0]


LOSSLESS: dict[str, tokenizers.Tokenizer] = {}


def test_a_token_across_the_boundary_is_cut_there(folder):
  made = byte_level(texts=WORDS, special=SPECIAL, size=400)
  made.save(str(folder / 'tokenizer.json'))
  vocabulary = vocabularies.huggingface(folder, eos=['</s>'])
  row = Row('0', 'Two bo', ('ats left',))
  (record,) = records(chats.continuation(tiny_task([row]), folder='none'), vocabulary)
  assert len(vocabulary.encode('Two boats')) < len(record.inputs) + len(vocabulary.encode('ats'))
  assert record.inputs.tolist() == vocabulary.encode('Two bo')
  assert record.targets.tolist() == vocabulary.encode('ats left')


@pytest.mark.parametrize('answer', ['before', 'The answer', '1. left'])
@pytest.mark.parametrize('name', chat_templates_test.TEMPLATES)
def test_an_answer_has_the_tokens_of_the_whole_chat(name, answer, vocabulary, folder):
  if vocabulary.describe()['kind'] == 'bytes':
    return
  source = (chat_templates_test.GOLDEN / f'{name}.jinja').read_text()
  config = {'chat_template': source, **chat_templates_test.TOKENS}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  task = chats.chat(tiny_task([Row('0', 'Two?', (answer,), (answer, 'left'), 0)]), folder)
  (record,) = records(task, vocabulary)
  template = chats.chat_templates.read(folder)
  asked, chat = template('Two?'), template('Two?', answer)
  starts = vocabulary.describe()['kind'] == 'sentencepiece'  # which reads no control tokens
  encode = lambda text: (
    [1] * text.startswith('<s>') + vocabulary.encode(text.removeprefix('<s>'))
    if starts
    else vocabulary.encode(text)
  )
  if name != 'phi_4':
    assert record.inputs.tolist() == encode(asked)
  if name == 'deepseek_r1':  # its prompts start a thought that is not in its chats
    assert vocabulary.decode(record.targets.tolist()).strip() == answer
    return
  ids = [*record.inputs.tolist(), *record.targets.tolist()]
  cut = chat[: chat.rindex('</s>')] if starts and '</s>' in chat else chat
  assert encode(cut)[: len(ids) - 1] == ids[:-1]
  assert ids[-1] in vocabulary.eos_ids
  assert record.options[0].tolist() == record.targets.tolist()


def test_the_block_of_the_answer_begins_the_targets(folder):
  made = byte_level(texts=WORDS, special=SPECIAL, size=400)
  made.save(str(folder / 'tokenizer.json'))
  source = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    '<think></think>{% generation %}{{ m["content"] }}<|im_end|>{% endgeneration %}\n'
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
  )
  (folder / 'tokenizer_config.json').write_text(json.dumps({'chat_template': source}))
  vocabulary = vocabularies.huggingface(folder, eos=['<|im_end|>'])
  (record,) = records(chats.chat(tiny_task([Row('0', 'Two?', ('left',))]), folder), vocabulary)
  before = '<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n<think></think>'
  assert record.inputs.tolist() == vocabulary.encode(before)
  assert record.targets.tolist() == vocabulary.encode('left<|im_end|>')


def test_encoders_and_decoders_read_texts_alone(vocabulary):
  row = Row('0', 'The answer: ', ('left',), ('left', 'before'), 0)
  plain = tiny_task([row])
  for task in (plain, chats.continuation(plain, 'none', 'encoder_decoder')):
    (record,) = records(task, vocabulary)
    assert record.inputs.tolist() == vocabulary.encode('The answer: ')
    texts = ('left', 'left', 'before')
    assert [ids.tolist() for ids in (record.targets, *record.options)] == [
      vocabulary.encode(text) for text in texts
    ]


def test_answers_in_another_vocabulary_are_read_alone():
  inputs, targets = vocabularies.bytes_vocabulary(), vocabularies.symbols(['a', 'b'])
  task = chats.continuation(tiny_task([Row('0', 'a', ('b a',))]), 'none')
  (record,) = task.tokenize(task.rows('train'), Vocabularies(inputs, targets), 0)
  assert record.targets.tolist() == targets.encode('b a')
  (record,) = task.tokenize(task.rows('train'), both(targets), 0)
  assert record.targets.tolist() == targets.encode('b a')


def test_records_with_other_tokens_have_another_definition(tmp_path):
  """Those of version 2 had answers that were tokenized alone."""
  plain = tiny_task([Row('0', 'a', ('b',))])
  assert plain.version == '1'
  assert chats.continuation(plain, 'none', 'encoder_decoder').version == '1 continued'
  assert chats.continuation(plain, 'none').version == '1 continued 3'
  (tmp_path / 'chat_template.jinja').write_text('{{ messages }}')
  alone = chats.chat(plain, tmp_path, 'encoder_decoder').version
  assert chats.chat(plain, tmp_path).version.startswith('1 chat 3 ')
  assert alone == f'{chats.chat(plain, tmp_path).version} alone'


def test_a_task_with_tokens_of_its_own_keeps_them():
  own = dataclasses.replace(tiny_task([]), tokenize=lambda *_: iter(()))
  continued = chats.continuation(own, 'none')
  assert (continued.tokenize, continued.version) == (own.tokenize, '1 continued')


def test_two_rows_of_one_id_are_refused_in_every_form(tmp_path):
  (tmp_path / 'chat_template.jinja').write_text('{{ messages }}')
  rows = [Row('0', 'a', ('b',)), Row('0', 'b', ('b',))]
  for form in (chats.chat, chats.continuation):
    with pytest.raises(ValueError, match="two rows with the id '0'"):
      materialize.materialize(
        form(tiny_task(rows), tmp_path), 'train', both(vocabularies.bytes_vocabulary()), tmp_path
      )
