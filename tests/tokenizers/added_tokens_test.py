"""Tokens that are added in the JSON files beside a tokenizer have the ids of transformers."""

from __future__ import annotations

import json

import pytest
import sentencepiece as spm
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from cascades.tokenizers import from_folder, vocabularies
from tests.tokenizers.huggingface_test import TEXTS, byte_level

SIZE = 330
LINES = [
  *TEXTS,
  'a <sep>b <sep> c',
  '{x}\n{y}',
  ' boats bo two',
  'x <s> y </s>z <pad>\u00e9a e\u0301a',
]
TOKENS = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
PLAIN = {'lstrip': False, 'rstrip': False, 'normalized': False, 'single_word': False}


def token(content, **flags):
  return {'content': content, **PLAIN, 'special': True, **flags}


# In tokenizer_config.json, and in other files.
SPELLINGS = {
  'added_tokens_decoder': ({'added_tokens_decoder': {str(SIZE): token('<sep>')}}, {}),
  'additional_special_tokens': ({'additional_special_tokens': ['<sep>']}, {}),
  'extra_special_tokens': ({'extra_special_tokens': ['<sep>']}, {}),
  'extra_special_tokens by name': ({'extra_special_tokens': {'sep2_token': '<sep>'}}, {}),
  'by role': ({'pad_token': '<sep>'}, {}),
  'by role, an object': ({'pad_token': {**token('<sep>'), '__type': 'AddedToken'}}, {}),
  'special_tokens_map': ({}, {'special_tokens_map': {'pad_token': token('<sep>')}}),
  'additional in special_tokens_map': (
    {}, {'special_tokens_map': {'additional_special_tokens': ['<sep>']}},
  ),
  'added_tokens': ({}, {'added_tokens': {'<sep>': SIZE}}),
}  # fmt: skip
FLAGS = {
  'lstrip and rstrip': {'added_tokens_decoder': {'1': token('<s>', lstrip=True, rstrip=True)}},
  'single word': {'added_tokens_decoder': {'330': token('bor', single_word=True)}},
  'normalized': {'added_tokens_decoder': {'330': token('\u00e9a', normalized=True, special=False)}},
  'prefix': {'add_prefix_space': True},
  'no prefix': {'add_prefix_space': False},
  'begins': {'add_bos_token': True},
  'begins not': {'add_bos_token': False},
  'ends': {'add_eos_token': True},
}


def metaspace():
  """A tokenizer of the kind of Llama 2, of characters and a few merges."""
  special = ['<unk>', '<s>', '</s>', '<pad>']
  characters = sorted(
    {'▁', *''.join(TEXTS).replace(' ', ''), *'abcxyz<>/sep{}\n\u00e9\u0301'} - {' '}
  )
  merges = [('▁', 'b'), ('o', 'a'), ('▁', 't'), ('▁', 'a')]
  pieces = [*special, *characters, *map(''.join, merges)]
  model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token='<unk>')
  made = tokenizers.Tokenizer(model)
  made.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  made.add_special_tokens(special)
  return made


def write(folder, tokenizer, options, model_type='llama', **files):
  folder.mkdir(exist_ok=True)
  tokenizer.save(str(folder / 'tokenizer.json'))
  contents = {'tokenizer_config': options, 'config': {'model_type': model_type}, **files}
  for name, content in contents.items():
    (folder / f'{name}.json').write_text(json.dumps(content))
  return folder


@pytest.fixture(scope='module')
def reference():
  return byte_level(size=SIZE)


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_a_token_that_is_added_in_another_file_has_an_id(spelling, reference, tmp_path):
  config, files = SPELLINGS[spelling]
  vocabulary = from_folder.read_vocabulary(
    write(tmp_path, reference, {**TOKENS, **config}, **files)
  )
  plain = reference.encode
  assert vocabulary.encode('a <sep>b') == [*plain('a ').ids, SIZE, *plain('b').ids]
  assert vocabulary.size == SIZE + 1
  vocabularies.save(vocabulary, tmp_path / 'saved')
  assert vocabularies.load(tmp_path / 'saved').encode('a <sep>b') == vocabulary.encode('a <sep>b')


def test_flags_in_the_configuration_count(reference, tmp_path):
  vocabulary = from_folder.read_vocabulary(
    write(tmp_path, reference, {**TOKENS, **FLAGS['lstrip and rstrip']})
  )
  assert vocabulary.encode('a <s> b') == [*reference.encode('a').ids, 1, *reference.encode('b').ids]


def test_a_folder_that_adds_nothing_keeps_its_fingerprint(reference, tmp_path):
  decoder = {
    str(i): {flag: getattr(t, flag) for flag in (*PLAIN, 'content', 'special')}
    for i, t in reference.get_added_tokens_decoder().items()
  }
  config = {**TOKENS, 'added_tokens_decoder': decoder, 'add_bos_token': False}
  plain = vocabularies.huggingface(write(tmp_path / 'a', reference, TOKENS))
  assert vocabularies.huggingface(write(tmp_path / 'b', reference, config)) == plain


def test_a_newer_configuration_hides_older_files(reference, tmp_path):
  config = {**TOKENS, 'added_tokens_decoder': {}}
  folder = write(
    tmp_path, reference, config,
    added_tokens={'<sep>': SIZE}, special_tokens_map={'pad_token': '<more>'},
  )  # fmt: skip
  assert from_folder.read_vocabulary(folder).size == SIZE


@pytest.mark.parametrize('index', [SIZE + 5, 4, 2**20])
def test_an_id_in_another_place_is_refused(index, reference, tmp_path):
  config = {**TOKENS, 'added_tokens_decoder': {str(index): token('<sep>')}}
  with pytest.raises(ValueError, match=rf"'<sep>' the id {index}, and its place is 330"):
    from_folder.read_vocabulary(write(tmp_path, reference, config))


def test_a_token_that_the_model_has_no_row_for_is_refused_or_left_out(reference, tmp_path, caplog):
  files = {'config': {'vocab_size': SIZE}}
  with pytest.raises(ValueError, match="'<sep>' one of 330 ids of the model, and its place is 330"):
    from_folder.read_vocabulary(
      write(tmp_path, reference, {**TOKENS, 'pad_token': '<sep>'}, **files)
    )
  config = {**TOKENS, 'added_tokens_decoder': {str(SIZE): token('<sep>')}}
  assert from_folder.read_vocabulary(write(tmp_path, reference, config, **files)).size == SIZE
  assert "Leaving out 1 added tokens ('<sep>'), for which the model has no row" in caplog.text


def test_text_that_may_hold_no_special_tokens_is_refused(reference, tmp_path):
  with pytest.raises(ValueError, match='sets split_special_tokens'):
    from_folder.read_vocabulary(
      write(tmp_path, reference, {**TOKENS, 'split_special_tokens': True})
    )


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    *(
      ('tokenizer_config', {**TOKENS, key: value})
      for key, values in {
        'eos_token': [7, {'text': '</s>'}, ['</s>']],
        'added_tokens_decoder': [[], {'x': token('a')}, {'-1': token('a')}, {'7': 'a'}, {'7': {}},
                                 {'99999999999999999999': token('a')}, {'7': token(7)},
                                 {'7': token('a', lstrip='no')}],
        'additional_special_tokens': ['<sep>', [7], {'x': 7}],
        'tokenizer_class': [7],
        'extra_ids': [2**20, -1],
        'add_prefix_space': ['yes'],
        'do_lower_case': [1],
      }.items()
      for value in values
    ),
    ('added_tokens', {'<sep>': 'x'}), ('added_tokens', {'<sep>': 2**40}),
    ('added_tokens', {'<sep>': 330.0}), ('added_tokens', []), ('special_tokens_map', 'x'),
    ('special_tokens_map', {'pad_token': 3}), ('config', {'eos_token_id': 'x'}),
    ('config', {'vocab_size': '330'}), ('generation_config', {'eos_token_id': [[2]]}),
    ('generation_config', None),
  ],
)  # fmt: skip
def test_a_file_of_another_shape_is_named(name, content, reference, tmp_path):
  folder = write(tmp_path, reference, TOKENS, **{name: content})
  with pytest.raises(ValueError, match=rf'{name}\.json is damaged'):
    from_folder.read_vocabulary(folder)


def test_llamas_class_splits_as_it_does_in_transformers(tmp_path):
  """Only the first piece of a text gets a space, also behind a special token."""
  reference, config = metaspace(), {**TOKENS, 'tokenizer_class': 'LlamaTokenizer'}
  tokens = {}
  for name, options in {'new': {}, 'legacy': {'legacy': True}, 'bare': FLAGS['no prefix']}.items():
    folder = write(tmp_path / name, reference, {**config, **options})
    vocabulary = from_folder.read_vocabulary(folder)
    ids = vocabulary.encode('boat</s>boat')
    tokens[name] = [vocabulary._tokenizer.id_to_token(i) for i in ids]
  assert tokens == {
    'new': ['▁b', 'oa', 't', '</s>', 'b', 'oa', 't'],
    'legacy': ['▁b', 'oa', 't', '</s>', '▁b', 'oa', 't'],
    'bare': ['b', 'oa', 't', '</s>', 'b', 'oa', 't'],
  }


@pytest.fixture(scope='module')
def t5(tmp_path_factory):
  path = tmp_path_factory.mktemp('t5') / 'spiece'
  spm.SentencePieceTrainer.Train(
    sentence_iterator=iter(TEXTS * 5), model_prefix=str(path), vocab_size=100, pad_id=0, eos_id=1,
    unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
  )  # fmt: skip
  return path.with_suffix('.model').read_bytes()


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_a_sentencepiece_model_without_the_token_is_refused(spelling, t5, tmp_path):
  config, files = json.loads(
    json.dumps(SPELLINGS[spelling]).replace(str(SIZE), str(size := _pieces(t5) + 100))
  )
  (tmp_path / 'spiece.model').write_bytes(t5)
  for name, content in {'tokenizer_config': config, **files}.items():
    (tmp_path / f'{name}.json').write_text(json.dumps(content))
  with pytest.raises(ValueError, match=r"spiece\.model has .* add '<sep>' with .* save both"):
    from_folder.read_vocabulary(tmp_path)
  listed = {'added_tokens': [{'id': size, **token('<sep>')}]}
  (tmp_path / 'tokenizer_config.json').write_text('{}')
  (tmp_path / 'tokenizer.json').write_text(json.dumps(listed))
  with pytest.raises(ValueError, match=r'tokenizer\.json is not a tokenizer\.json of Hugging Face'):
    from_folder.read_vocabulary(tmp_path)  # preferred, for what it adds


def _pieces(model):
  return spm.SentencePieceProcessor(model_proto=model).vocab_size()


def test_t5s_own_tokens_are_no_additions(t5, tmp_path):
  (tmp_path / 'spiece.model').write_bytes(t5)
  last = _pieces(t5) + 99
  decoder = {'0': token('<pad>'), '1': token('</s>'), '2': token('<unk>')}
  decoder |= {str(last - i): token(f'<extra_id_{i}>') for i in range(100)}
  config = {
    'added_tokens_decoder': decoder,
    'additional_special_tokens': [f'<extra_id_{i}>' for i in range(100)],
    'extra_ids': 100,
    'eos_token': '</s>',
  }
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  assert from_folder.read_vocabulary(tmp_path) == vocabularies.sentencepiece(
    tmp_path / 'spiece.model'
  )


@pytest.mark.parametrize('option', ['add_prefix_space', 'add_bos_token'])
def test_options_that_a_sentencepiece_model_contradicts_are_refused(option, tmp_path):
  spm.SentencePieceTrainer.Train(
    sentence_iterator=iter(TEXTS * 5), model_prefix=str(tmp_path / 'tokenizer'), vocab_size=100,
    hard_vocab_limit=False, minloglevel=2,
  )  # fmt: skip
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({option: True}))
  assert from_folder.read_vocabulary(tmp_path).bos_id == 1
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({option: False}))
  with pytest.raises(ValueError, match=rf'sets {option} to false, and tokenizer\.model'):
    from_folder.read_vocabulary(tmp_path)


def _qwen():
  made = byte_level(size=SIZE)
  made.normalizer = normalizers.NFC()
  pattern = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r'|\s*[\r\n]+|\s+(?!\S)|\s+'
  )
  made.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(pattern), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  return made


BASES = {
  'PreTrainedTokenizerFast': ('llama', lambda: byte_level(size=SIZE)),
  'GPT2Tokenizer': ('llama', lambda: byte_level(size=SIZE)),
  'LlamaTokenizerFast': ('llama', lambda: byte_level(size=SIZE)),
  'LlamaTokenizer': ('llama', metaspace),
  'Qwen2Tokenizer': ('qwen2', _qwen),
}


@pytest.mark.reference
@pytest.mark.parametrize('tokenizer_class', BASES)
@pytest.mark.parametrize('variant', ['none', *SPELLINGS, *FLAGS])
def test_ids_are_those_of_transformers(variant, tokenizer_class, tmp_path):
  transformers = pytest.importorskip('transformers', '5.20', reason='needs the extra `reference`')
  model_type, make = BASES[tokenizer_class]
  base = make()
  base.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 1)])
  config, files = SPELLINGS.get(variant) or (FLAGS.get(variant, {}), {})
  config = {**TOKENS, 'tokenizer_class': tokenizer_class, 'pad_token': '<pad>', **config}
  place = str(base.get_vocab_size())
  config, files = json.loads(json.dumps([config, files]).replace(str(SIZE), place))
  folder = write(tmp_path, base, config, model_type, **files)
  vocabulary = from_folder.read_vocabulary(folder)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  for line in LINES:
    assert [vocabulary.bos_id, *vocabulary.encode(line)] == theirs(line)['input_ids'], line
