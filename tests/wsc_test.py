import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades import wsc

WORDS = ['the', 'a', 'his', 'Bunny', 'bunny', 'fuzzy', "Bob's", 'Bob', 'hat', 'Their']
phrases = st.lists(st.sampled_from(WORDS), max_size=4).map(' '.join)


@pytest.mark.parametrize(
  ('target', 'answer', 'right'),
  [
    ('the fuzzy bunny', 'Bunny', 1),
    ('bunny', 'that fuzzy bunny', 1),
    ('The Bunny', 'a bunny', 1),
    ('the bunny', 'the hat', 0),
    ('fuzzy bunny', 'old bunny', 0),
    ("Bob's hat", 'Bob', 0),
    ("Bob's hat", 'hat', 0),
    ('the hat', "Bob's hat", 0),
    ("Bob's hat", "his Bob's hat", 1),
    ('the bunny', '', 0),
    ('the bunny', 'the', 0),
    ('bunny', 'bunnyhop', 0),
    (' Bob ', 'Bob\n', 1),
  ],
)
def test_an_answer_names_the_target_by_its_words(target, answer, right):
  assert wsc.quality(target, answer) == right


@pytest.mark.parametrize(
  ('answer', 'right'),
  [('Ann', 1), ('Bob', 0), ('bob', 0), ('Bob Hill', 0), ("Bob's hat", 1), ('', 0), ('the', 0)],
)
def test_where_the_candidate_is_wrong_another_is_to_be_named(answer, right):
  assert wsc.quality('other than Bob', answer) == right


@given(phrases, phrases)
def test_texts_are_the_same_if_the_words_of_one_are_all_in_the_other(first, second):
  def clean(text):
    determiners = ('the', 'a', 'his', 'their')
    return [word for word in text.lower().split() if word not in determiners]

  left, right = clean(first), clean(second)
  inside = all(word in right for word in left) or all(word in left for word in right)
  apostrophes = ("'" in ' '.join(left)) == ("'" in ' '.join(right))
  expected = bool(left) and bool(right) and inside and apostrophes
  assert wsc.same(first, second) == wsc.same(second, first) == expected


@given(phrases, phrases)
def test_just_one_of_a_referent_and_its_contrary_is_right(candidate, answer):
  right = wsc.quality(candidate, answer)
  contrary = wsc.quality(f'{wsc.OTHER_THAN}{candidate}', answer)
  named = any(word.lower() not in ('the', 'a', 'his', 'their') for word in answer.split())
  assert right + contrary == named


@pytest.mark.parametrize('target', ['the fuzzy bunny', 'other than Bob', 'other than the hat'])
def test_the_target_itself_is_right(target):
  assert wsc.quality(target, f' {target} ') == 1
