"""Prompts of requests are tokens of rows: those of training, of a continuation, or of a chat."""

import numpy as np
import pytest

from cascades.data import converters, materialize
from cascades.serving.exchanges import Message
from cascades.serving.prompt_reader import PromptReader
from cascades.tasks import chats
from cascades.tasks.task import Row, both
from tests.tasks import chats_test
from tests.tiny_tasks import tiny_task

TEXTS = ('How far? ', 'Two\nlines {x}')


@pytest.fixture
def model(tmp_path):
  """Vocabulary and companion files of a chat model."""
  vocabulary = chats_test.vocabulary(tmp_path)(eos=['<|im_end|>'], bos='<bos>')
  return vocabulary, chats_test.folder(tmp_path, chats_test.CHATML)


def in_records(task, vocabulary, architecture, directory):
  """Prompts of the rows of a task as `infer` reads them."""
  records = materialize.materialize(task, 'train', both(vocabulary), directory)
  converter = converters.feature_converter(
    records, converters.CONVERTERS[architecture], {'inputs': 200, 'targets': 8}
  )
  examples = [converter.example(tokens, answer) for tokens, answer in records.tokens([0, 1])]
  return [np.concatenate(example.prompt).tolist() for example in examples]


@pytest.mark.parametrize('architecture', ['decoder_only', 'encoder_decoder'])
@pytest.mark.parametrize('prompts', [None, chats.continuation, chats.chat])
def test_a_text_is_read_as_the_prompt_of_a_row(model, architecture, prompts, tmp_path):
  if prompts is chats.chat and architecture == 'encoder_decoder':
    pytest.skip('an encoder-decoder needs a first input, which no template writes')
  vocabulary, folder = model
  task = tiny_task([Row(str(n), text, ('Far.',)) for n, text in enumerate(TEXTS)])
  task = prompts(task, folder, architecture) if prompts else task
  expected = in_records(task, vocabulary, architecture, tmp_path / 'records')
  reader = PromptReader(vocabulary, architecture, folder, prompts=prompts)
  assert [reader.tokens(text).tolist() for text in TEXTS] == expected
  assert [reader.count(text) for text in TEXTS] == [len(tokens) for tokens in expected]


def test_one_message_of_a_user_is_the_prompt_of_a_chat(model):
  chat, template = (
    PromptReader(model[0], 'decoder_only', model[1], prompts=prompts)
    for prompts in (chats.chat, None)
  )
  for text in TEXTS:
    message = Message('user', text)
    np.testing.assert_array_equal(template.tokens([message]), chat.tokens(text))


def test_a_conversation_is_written_by_the_template(model):
  vocabulary, folder = model
  conversation = [
    Message('system', 'Count.'),
    Message('user', 'One?'),
    Message('assistant', 'Two.'),
    Message('user', 'Three?'),
  ]
  tokens = PromptReader(vocabulary, 'decoder_only', folder).tokens(conversation)
  turns = ('system\nCount.', 'user\nOne?', 'assistant\nTwo.', 'user\nThree?')
  written = ''.join(f'<|im_start|>{turn}<|im_end|>\n' for turn in turns) + '<|im_start|>assistant\n'
  assert ''.join(map(vocabulary._tokenizer.id_to_token, tokens.tolist())) == written


def test_without_a_template_one_message_is_a_text(model):
  vocabulary, folder = model
  for reader in (
    PromptReader(vocabulary, 'decoder_only', folder / 'nothing'),
    PromptReader(vocabulary, 'decoder_only', folder, messages='text'),
  ):
    np.testing.assert_array_equal(reader.tokens([Message('user', 'Hi')]), reader.tokens('Hi'))
    with pytest.raises(ValueError, match='messages of user, assistant, user: the model has no'):
      reader.tokens([Message('user', 'a'), Message('assistant', 'b'), Message('user', 'c')])
  with pytest.raises(ValueError, match='has no chat template'):
    PromptReader(vocabulary, 'decoder_only', folder / 'nothing', prompts=chats.chat)


def test_an_empty_prompt_and_a_template_that_refuses_are_sentences(model, tmp_path):
  vocabulary = chats_test.vocabulary(tmp_path)(eos=['<|im_end|>'], bos='')
  reader = PromptReader(vocabulary, 'decoder_only', tmp_path, prompts=chats.continuation)
  with pytest.raises(ValueError, match='the prompt is empty'):
    reader.tokens('')
  strict = chats_test.folder(tmp_path, chats_test.GEMMA)
  with pytest.raises(ValueError, match='cannot write this prompt: No system'):
    PromptReader(vocabulary, 'decoder_only', strict).tokens([Message('system', 'a')])
