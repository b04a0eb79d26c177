import numpy as np
import pytest

from cascades.inference.fine_tuned import FineTunedConfig
from tests.interop import encoders_test

PIECES = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'hello', 'world', 'good', 'evening']
LINES, LABELS = ['hello world', 'good evening', 'world good', 'evening hello'], [0, 1, 0, 1]


@pytest.fixture
def config(tmp_path):
  encoders_test.write(tmp_path / 'encoder', 'bert')
  (tmp_path / 'encoder' / 'vocab.txt').write_text('\n'.join(PIECES) + '\n')
  return FineTunedConfig(str(tmp_path / 'encoder'), batch=3, rate=1e-2, tokens=8)


def test_an_encoder_is_fine_tuned_and_goes_on_exactly_from_its_state(config):
  model, other = config.build(2, 0), config.build(2, 0)
  prepared, rows = model.prepare(LINES), np.arange(4)
  np.testing.assert_allclose(model.predict(prepared, rows), 0.5)
  before = model.state()
  for _ in range(4):
    model.partial_fit(LINES, LABELS)
  assert (model.predict(prepared, rows).argmax(1) == LABELS).all()
  after = model.state()
  assert int(after['updates']) == 4
  leaves = [name for name in before if not np.array_equal(before[name], after[name])]
  assert len(leaves) > 10  # the encoder has learned, not its head alone
  other.restore(after)
  for each in (model, other):
    each.partial_fit(LINES, LABELS[::-1])
  for name, value in model.state().items():
    np.testing.assert_array_equal(other.state()[name], value)


def test_a_text_is_predicted_alike_alone_and_among_others(config):
  model = config.build(2, 0)
  model.partial_fit(LINES, LABELS)
  prepared = model.prepare(LINES)
  together = model.predict(prepared, np.arange(4))
  for row in range(4):
    np.testing.assert_array_equal(model.predict(prepared, np.array([row]))[0], together[row])
