import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.tasks import superglue_preprocessors as preprocessors
from cascades.tasks.task import Row

COPA = {'premise': 'It rained.', 'choice1': 'We got wet.', 'choice2': 'We swam.'}
RECORD = {
  'passage': 'Ada met Eva and Bo\n@highlight\nEva won.\n@highlight\nBo lost',
  'query': 'Then @placeholder laughed.',
  'entities': ['Ada', 'Bo', 'Eva'],
  'answers': ['Eva', 'Bo'],
  'idx': {'passage': 4, 'query': 9},
}
WSC = {
  'text': 'Jan saw him, and he said: "I know him," as he left.',
  'span1_text': 'Jan',
  'span1_index': 0,
  'span2_text': 'him',
  'span2_index': 8,
  'idx': 5,
}


def test_the_premise_and_its_two_choices():
  (row,) = preprocessors.copa('train', 0, {**COPA, 'question': 'effect', 'idx': 3, 'label': 1})
  assert row == Row(
    id='copa/train/3',
    inputs=('copa choice1: We got wet. choice2: We swam. premise: It rained. question: effect'),
    answers=('choice2', 'We swam.'),
    options=('We got wet.', 'We swam.'),
    label=1,
  )
  assert row.targets == 'choice2'


def test_unlabeled_choices_have_no_answer():
  (row,) = preprocessors.copa('test', 0, {**COPA, 'question': 'effect', 'idx': 3, 'label': -1})
  assert (row.answers, row.options, row.label) == ((), ('We got wet.', 'We swam.'), -1)


def test_an_answer_to_a_question_loses_its_markup_and_gets_a_group():
  example = {
    'paragraph': '<b>Sent 1: </b>Two <br>hens.<br>',
    'question': 'Who <b>is</b> it?',
    'answer': 'a <i>hen</i>',
    'idx': {'paragraph': 7, 'question': 11, 'answer': 130},
    'label': 0,
  }
  (row,) = preprocessors.multirc('validation', 0, example)
  assert row == Row(
    id='multirc/validation/7/11/130',
    inputs=('multirc question: Who is it? answer: a <i>hen</i> paragraph: Sent 1: Two  hens. '),
    answers=('False',),
    options=('False', 'True'),
    label=0,
    group='7/11',
  )


@pytest.mark.parametrize('place', ['paragraph', 'question', 'answer'])
def test_an_answer_of_an_unknown_question_cannot_be_judged(place):
  example = {'idx': {'paragraph': 0, 'question': 0, 'answer': 0} | {place: -1}}
  with pytest.raises(ValueError, match=r"'idx' is .* need numbers"):
    list(preprocessors.multirc('train', 0, example))


def test_a_query_is_evaluated_once_with_all_its_answers():
  (row,) = preprocessors.record('validation', 0, RECORD)
  assert row == Row(
    id='record/validation/4/9',
    inputs=(
      'record query: Then @placeholder laughed. entities: Ada, Bo, Eva passage: '
      'Ada met Eva and Bo. Eva won. Bo lost'
    ),
    answers=('Eva', 'Bo'),
    options=('Ada', 'Bo', 'Eva'),
    label=2,
    group='4/9',
  )


def test_a_query_is_learnt_once_for_each_of_its_answers():
  rows = list(preprocessors.record('train', 0, RECORD))
  assert [(row.id, row.targets, row.label) for row in rows] == [
    ('record/train/4/9/0', 'Eva', 2),
    ('record/train/4/9/1', 'Bo', 1),
  ]
  assert all(set(row.answers) == {'Eva', 'Bo'} and len(row.answers) == 2 for row in rows)
  assert {row.group for row in rows} == {'4/9'}


@pytest.mark.parametrize(
  ('answers', 'label'), [([], -1), (['Nobody'], None), (['Nobody', 'Bo'], 1), (['Ada'], 0)]
)
def test_the_label_is_that_of_the_first_answer_among_the_entities(answers, label):
  (row,) = preprocessors.record('validation', 0, {**RECORD, 'answers': answers})
  assert (row.answers, row.label) == (tuple(answers), label)


def test_an_unlabeled_query_is_one_row_in_every_split():
  for split in ('train', 'test'):
    (row,) = preprocessors.record(split, 0, {**RECORD, 'answers': []})
    assert row.id == f'record/{split}/4/9'


@pytest.mark.parametrize(
  ('passage', 'expected'),
  [
    ('One\n@highlight\nTwo', 'One. Two'),
    ('One.\n@highlight\nTwo', 'One. Two'),
    ('One?\n@highlight\nTwo!\n@highlight\nThree', 'One? Two! Three'),
    ('"One"\n@highlight\n\'Two\'\n@highlight\nThree', '"One" \'Two\' Three'),
    ('One\n\n@highlight\nTwo', 'One\n. Two'),
    ('One @highlight Two\n', 'One @highlight Two\n'),
  ],
)
def test_highlights_become_sentences(passage, expected):
  assert preprocessors.without_highlights(passage) == expected


def test_the_pronoun_is_marked_and_the_candidate_follows():
  (row,) = preprocessors.wsc('train', 0, {**WSC, 'label': 1})
  assert row == Row(
    id='wsc/train/5',
    inputs='wsc text: Jan saw him, and he said: "I know *him*," as he left. candidate: Jan',
    answers=('True',),
    options=('False', 'True'),
    label=1,
  )


@pytest.mark.parametrize(
  ('split', 'label', 'answers'),
  [
    ('train', 1, [('Jan',)]),
    ('train', 0, []),
    ('validation', 1, [('Jan',)]),
    ('validation', 0, [('other than Jan',)]),
    ('test', -1, [()]),
  ],
)
def test_the_referent_is_learnt_only_where_the_candidate_is_right(split, label, answers):
  rows = list(preprocessors.wsc_referent(split, 0, {**WSC, 'label': label}))
  assert [row.answers for row in rows] == answers
  for row in rows:
    assert row.id == f'wsc_referent/{split}/5'
    assert row.inputs == 'wsc: Jan saw him, and he said: "I know *him*," as he left.'
    assert (row.options, row.label) == ((), None)


@pytest.mark.parametrize(
  ('text', 'pronoun', 'index', 'expected'),
  [
    ('She saw it.', 'She', 0, '*She* saw it.'),
    ('They cut it and it broke.', 'it', 2, 'They cut *it* and it broke.'),
    ('They cut it and it broke.', 'it', 4, 'They cut it and *it* broke.'),
    ('We could not use it .', 'it', 3, 'We could not use *it* .'),
    ('"Him?" asked Tim, "him,"', 'him', 3, '"Him?" asked Tim, "*him*,"'),
    ('Its lid, it said, fits.', 'it', 0, 'Its lid, *it* said, fits.'),
    ('Two  spaces, it seems, it says', 'it', 3, 'Two  spaces, *it* seems, it says'),
    ('his own and his', 'his own', 3, '*his own* and his'),
    ('a b (c+) d', '(c+)', 2, 'a b *(c+)* d'),
  ],
)
def test_the_whole_word_nearest_the_index_is_marked(text, pronoun, index, expected):
  assert preprocessors.marked(text, pronoun, index) == expected


@pytest.mark.parametrize(('text', 'pronoun'), [('Its lid fits.', 'it'), ('', 'it'), ('a b', '')])
def test_a_pronoun_that_is_not_there_is_an_error(text, pronoun):
  with pytest.raises(ValueError, match='is no whole word of'):
    preprocessors.marked(text, pronoun, 0)


@given(
  st.lists(st.sampled_from(['he', 'it', 'he,', '"he"', 'the', 'hem', 'He', '', 'xhe']), min_size=1),
  st.integers(-1, 20),
)
def test_marking_takes_the_nearest_of_the_words_that_are_the_pronoun(words, index):
  places = [i for i, word in enumerate(words) if word.strip('",') == 'he']
  text = ' '.join(words)
  if not places:
    with pytest.raises(ValueError, match='no whole word'):
      preprocessors.marked(text, 'he', index)
    return
  found = preprocessors.marked(text, 'he', index)
  assert found.replace('*', '') == text
  (place,) = [i for i, word in enumerate(found.split(' ')) if '*he*' in word]
  assert place in places
  assert abs(place - index) == min(abs(other - index) for other in places)


def test_a_row_without_a_number_is_called_by_its_place():
  preprocess = preprocessors.classify(
    'rte', ('hypothesis', 'premise'), ('entailment', 'not_entailment')
  )
  example = {'premise': 'p', 'hypothesis': 'h', 'idx': -1, 'label': 0}
  assert [row.id for row in preprocess('train', 12, example)] == ['rte/train/row12']
  unknown = {**RECORD, 'idx': {'passage': -1, 'query': 3}}
  assert [row.id for row in preprocessors.record('train', 12, unknown)] == [
    'record/train/row12/0',
    'record/train/row12/1',
  ]
