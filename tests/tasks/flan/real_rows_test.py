"""Real texts in other layouts, converted to the published fields, are rows of the tasks."""

import pytest

from benchmarks import real_rows


@pytest.mark.parametrize('name', real_rows.CONVERSIONS)
def test_real_texts_are_rows_of_the_task(real_data, name):
  counts = real_rows.converted(real_data, name)
  if not counts:
    pytest.skip(f'there are no texts for {name} below {real_data}')
  assert min(counts.values()) >= 200


def test_missing_texts_are_left_out(tmp_path):
  assert real_rows.converted(tmp_path, 'flan_xsum') == {}
