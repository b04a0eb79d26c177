"""FLAN2021's summarization cluster: subjects, headlines, topics and summaries of longer texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cascades.tasks.datasets import Dataset
from cascades.tasks.features import Example
from cascades.tasks.flan.definition import LIMIT, FlanTask, PromptFields, classify, generate

TOPICS = ('World', 'Sports', 'Business', 'Science/Tech')

_METRICS = ('rougeL', 'rouge1', 'rouge2')
_TRAIN = f'train[:{LIMIT}]'
_VALIDATION = 'validation[:200]'
_OPINIONS = 10  # FLAN shows that many of a film's reviews or of a claim's arguments
_ATTACHMENT = re.compile(r'<\w+>')  # <file_photo> in a chat; '<3' stays


def _splits(train: int, validation: int, test: int) -> dict[str, int]:
  return {'train': train, 'validation': validation, 'test': test}


def _texts(*names: str) -> dict[str, type]:
  return dict.fromkeys(names, str)


def _email(example: Example) -> list[PromptFields]:
  """An email in one line, and its subject; those without either are left out."""
  body, subject = (
    example[key].replace('\n', ' ').strip() for key in ('email_body', 'subject_line')
  )
  return [PromptFields({'body': body}, (subject,))] if body and subject else []


def _headline(example: Example) -> list[PromptFields]:
  """Sentences with a masked word or digit are left out."""
  sentence, headline = example['document'], example['summary']
  if any(mask in text for mask in ('UNK', '#') for text in (sentence, headline)):
    return []
  return [PromptFields({'document': sentence}, (headline,))]


def _chat(example: Example) -> list[PromptFields]:
  """A chat without the placeholders of attachments."""
  dialogue = _ATTACHMENT.sub(' ', example['dialogue'].replace('\r\n', '\n'))
  return [PromptFields({'dialogue': dialogue}, (example['summary'],))]


def _consensus(example: Example) -> list[PromptFields]:
  """A film's reviews; a film without any is left out."""
  reviews = example['_critics']['value'][:_OPINIONS]
  if not reviews:
    return []
  texts = {
    'movie': example['_movie_name'].replace('_', ' '),
    'reviews': _numbered(reviews),
    'first_review': reviews[0],
  }
  return [PromptFields(texts, (example['_critic_consensus'],))]


def _claim(example: Example) -> list[PromptFields]:
  """A debate's arguments; a claim without any is left out."""
  arguments = example['_argument_sentences']['value'][:_OPINIONS]
  if not arguments:
    return []
  texts = {'debate': example['_debate_name'], 'arguments': _numbered(arguments)}
  return [PromptFields(texts, (example['_claim'],))]


def _numbered(items: Sequence[str]) -> str:
  return '\n'.join(f'{number}. {item}' for number, item in enumerate(items, 1))


def _opinions(*fields: str, of: str) -> dict[str, object]:
  """Features of opinion_abstracts, where a JSON object has become a sequence of pairs."""
  return {**_texts(*fields), of: {'value': [str]}}


TASKS = (
  FlanTask(
    name='aeslc',
    dataset=Dataset(
      'aeslc', '1.0.0', _splits(14_436, 1960, 1906), _texts('email_body', 'subject_line')
    ),
    train='train',
    validation='validation[-200:]',
    test='test',
    rows=14_436,
    preprocess=_email,
    metrics=_METRICS,
  ),
  FlanTask(
    name='cnn_dailymail',
    dataset=Dataset(
      'cnn_dailymail', '3.4.0', _splits(287_113, 13_368, 11_490), _texts('article', 'highlights')
    ),
    train=_TRAIN,
    validation=_VALIDATION,
    test='test',
    rows=LIMIT,
    preprocess=generate({'article': 'article'}, 'highlights'),
    metrics=_METRICS,
  ),
  FlanTask(
    name='gigaword',
    dataset=Dataset(
      'gigaword', '1.2.0', _splits(3_803_957, 189_651, 1951), _texts('document', 'summary')
    ),
    train=_TRAIN,
    validation=_VALIDATION,
    test='test',
    rows=LIMIT,
    preprocess=_headline,
    metrics=_METRICS,
  ),
  FlanTask(
    name='multi_news',
    dataset=Dataset(
      'multi_news', '2.1.0', _splits(44_972, 5622, 5622), _texts('document', 'summary')
    ),
    train=_TRAIN,
    validation=_VALIDATION,
    test='test',
    rows=LIMIT,
    preprocess=generate({'document': 'document'}, 'summary'),
    metrics=_METRICS,
  ),
  FlanTask(
    name='newsroom',
    dataset=Dataset(
      'newsroom',
      '1.0.0',
      _splits(995_041, 108_837, 108_862),
      _texts('title', 'text', 'summary'),
      files={split: f'newsroom/{split}.jsonl' for split in ('train', 'test')}
      | {'validation': 'newsroom/dev.jsonl'},
    ),
    train=_TRAIN,
    validation=_VALIDATION,
    test='test',
    rows=LIMIT,
    preprocess=generate({'title': 'title', 'text': 'text'}, 'summary'),
    metrics=_METRICS,
  ),
  FlanTask(
    name='samsum',
    dataset=Dataset('samsum', '1.0.0', _splits(14_732, 818, 819), _texts('dialogue', 'summary')),
    train='train',
    validation=_VALIDATION,
    test='test',
    rows=14_732,
    preprocess=_chat,
    metrics=_METRICS,
  ),
  FlanTask(
    name='xsum',
    dataset=Dataset(
      'xsum', '1.1.0', _splits(203_577, 11_305, 11_301), _texts('document', 'summary')
    ),
    train=_TRAIN,
    validation=_VALIDATION,
    test='test',
    rows=LIMIT,
    preprocess=generate({'document': 'document'}, 'summary'),
    metrics=_METRICS,
  ),
  FlanTask(
    name='ag_news_subset',
    dataset=Dataset(
      'ag_news_subset',
      '1.0.0',
      {'train': 120_000, 'test': 7600},
      {**_texts('title', 'description'), 'label': ('World', 'Sports', 'Business', 'Sci/Tech')},
    ),
    train=_TRAIN,
    validation='train[-200:]',
    test='test',
    rows=LIMIT,
    preprocess=classify({'title': 'title', 'description': 'description'}, TOPICS),
  ),
  FlanTask(
    name='opinion_abstracts_rotten_tomatoes',
    dataset=Dataset(
      'opinion_abstracts/rotten_tomatoes',
      '1.0.0',
      {'train': 3731},
      _opinions('_movie_name', '_critic_consensus', of='_critics'),
    ),
    train='train[:-600]',
    validation='train[-600:-500]',
    test='train[-500:]',
    rows=3131,
    preprocess=_consensus,
    metrics=_METRICS,
  ),
  FlanTask(
    name='opinion_abstracts_idebate',
    dataset=Dataset(
      'opinion_abstracts/idebate',
      '1.0.0',
      {'train': 2259},
      _opinions('_debate_name', '_claim', of='_argument_sentences'),
    ),
    train='train[:-600]',
    validation='train[-600:-500]',
    test='train[-500:]',
    rows=1659,
    preprocess=_claim,
    metrics=_METRICS,
  ),
  FlanTask(
    name='wiki_lingua_english_en',
    dataset=Dataset(
      'gem/wiki_lingua_english_en',
      '1.1.0',
      _splits(99_020, 13_823, 28_614),
      _texts('source', 'target'),
    ),
    train=_TRAIN,
    validation=_VALIDATION,
    test='test',
    rows=LIMIT,
    preprocess=generate({'source': 'source'}, 'target'),
    metrics=_METRICS,
  ),
)
