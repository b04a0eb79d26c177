from cascades.runtime import origins


def test_differences_name_the_field_and_both_values():
  there, here = {'rows': 8, 'task': 'a', 'more': 1}, {'rows': 9, 'task': 'a'}
  assert origins.differences(there, here) == ['rows is 8 there and 9 here']
  assert origins.differences(there, here, ['more']) == ['more is 1 there and None here']
  assert origins.differences(there, there) == []


def test_fingerprints_are_abbreviated_and_paths_are_not():
  (sentence,) = origins.differences({'vocabulary': 'a' * 64}, {'vocabulary': 'b' * 64})
  assert sentence == f"vocabulary is '{'a' * 12}...' there and '{'b' * 12}...' here"
  paths = [f'{"folder/" * 12}{name}' for name in 'ab']
  (sentence,) = origins.differences(*({'path': path} for path in paths))
  assert sentence == f'path is {paths[0]!r} there and {paths[1]!r} here'
