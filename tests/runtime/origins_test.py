from cascades.runtime import origins


def test_differences_name_the_field_and_both_values():
  there, here = {'rows': 8, 'task': 'a', 'more': 1}, {'rows': 9, 'task': 'a'}
  assert origins.differences(there, here) == ['rows is 8 there and 9 here']
  assert origins.differences(there, here, ['more']) == ['more is 1 there and None here']
  assert origins.differences(there, there) == []


def test_long_values_show_their_first_characters():
  (sentence,) = origins.differences({'vocabulary': 'a' * 64}, {'vocabulary': 'b' * 64})
  assert sentence == f"vocabulary is '{'a' * 12}... there and '{'b' * 12}... here"
