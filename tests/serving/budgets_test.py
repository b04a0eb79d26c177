"""Ceilings of cost: reserved before, settled after, and stored."""

import contextlib
import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.costs import Prices
from cascades.serving import budgets
from cascades.serving.budgets import Ceilings, Ledger, Spending
from cascades.serving.exchanges import Message, ModelError, Question
from cascades.serving.keys import ANONYMOUS, ApiKey, KeyLimits, LimitError
from tests.serving.example_exchanges import NOON

ALICE = ApiKey('alice', b'', KeyLimits(dollars_per_day=1))


def ledger(path=None, now=NOON, **ceilings):
  return Ledger(Ceilings(**ceilings), path, clock=now if callable(now) else lambda: now)


def state(path):
  """The last complete line."""
  return json.loads(path.read_text().rpartition('\n')[0].rpartition('\n')[2])


def test_the_most_that_an_answer_can_cost_is_a_bound_by_bytes():
  prices = Prices(prompt=2.0, generated=10.0, cached_prompt=0.0, cached_tokens=100, request=1.0)
  assert budgets.most(Question('caf\u00e9', max_tokens=3), longest=8, prices=prices) == (9, 43)
  assert budgets.most(Question('ab'), longest=8) == (11, 0)
  assert budgets.most(Question('ab', max_tokens=99), longest=8).tokens == 11
  chat = budgets.most(Question((Message('user', 'ab'),), max_tokens=3), longest=8)
  assert chat.tokens == 3 + 3 + budgets.TEMPLATE_TOKENS


def test_requests_at_once_cannot_exceed_the_day_together():
  book = ledger(dollars_per_day=1)
  first = book.reserve(ANONYMOUS, Spending(10, 0.6))
  with pytest.raises(LimitError, match=r'The server has 1 dollars a day, of which 0\.6') as error:
    book.reserve(ANONYMOUS, Spending(10, 0.6))
  assert error.value.retry_after == 12 * 3600
  book.settle(ANONYMOUS, first, Spending(4, 0.25))
  book.reserve(ANONYMOUS, Spending(10, 0.6))
  assert book.spent() == (14, 0.85)


def test_a_key_has_a_day_of_its_own():
  book = ledger(dollars_per_day=5)
  book.reserve(ALICE, Spending(1, 0.75))
  with pytest.raises(LimitError, match='alice has 1 dollars a day'):
    book.reserve(ALICE, Spending(1, 0.75))
  book.reserve(ApiKey('bob', b''), Spending(1, 3.0))
  assert book.spent('alice') == (1, 0.75)
  assert book.spent() == (2, 3.75)


def test_a_request_has_a_ceiling_for_all_of_its_models():
  book = ledger(dollars_per_request=0.5, tokens_per_request=100)
  book.reserve(ANONYMOUS, Spending(60, 0.3))
  with pytest.raises(LimitError, match=r'may take 0\.5 dollars, and this one may take 0\.6'):
    book.reserve(ANONYMOUS, Spending(1, 0.3), before=Spending(1, 0.3))
  with pytest.raises(LimitError, match='100 tokens'):
    book.reserve(ANONYMOUS, Spending(60, 0), before=Spending(60, 0))
  assert book.spent() == (60, 0.3)


def test_a_restart_does_not_reset_the_day(tmp_path):
  path = tmp_path / 'budget.json'
  book = ledger(path, dollars_per_day=1)
  reservation = book.reserve(ANONYMOUS, Spending(10, 0.75))
  assert ledger(path, dollars_per_day=1).spent() == (10, 0.75)  # killed while a model answers
  book.settle(ANONYMOUS, reservation, Spending(5, 0.5))
  again = ledger(path, dollars_per_day=1)
  assert again.spent() == (5, 0.5)
  with pytest.raises(LimitError):
    again.reserve(ANONYMOUS, Spending(5, 0.75))
  assert ledger(path, NOON + 86400, dollars_per_day=1).spent() == (0, 0)


def test_nothing_is_written_without_a_ceiling_of_the_day(tmp_path):
  book = ledger(tmp_path / 'budget.json', dollars_per_request=1)
  book.reserve(ANONYMOUS, Spending(1, 0.5))
  assert not (tmp_path / 'budget.json').exists()
  book.reserve(ALICE, Spending(1, 0.5))
  assert state(tmp_path / 'budget.json')['spent']['alice'] == [1, 0.5]


def test_a_new_day_begins_at_midnight_of_utc_and_forgets_reservations():
  now = [NOON]
  book = ledger(now=lambda: now[0], dollars_per_day=1)
  reservation = book.reserve(ANONYMOUS, Spending(1, 0.9))
  now[0] += 12 * 3600
  assert book.spent() == (0, 0)
  book.reserve(ANONYMOUS, Spending(1, 0.9))
  book.settle(ANONYMOUS, reservation, Spending(1, 0.1))
  assert book.spent() == (1, 0.9)


def test_a_ceiling_that_cannot_be_stored_admits_nothing(tmp_path, caplog):
  folder = tmp_path / 'a file'
  path = folder / 'budget.json'
  book = ledger(path, dollars_per_day=1)
  reservation = book.reserve(ANONYMOUS, Spending(1, 0.5))
  path.unlink()
  folder.rmdir()
  folder.write_text('')
  with pytest.raises(ModelError, match='cannot be stored'):
    book.reserve(ANONYMOUS, Spending(1, 0.1))
  assert book.spent() == (1, 0.5)
  book.settle(ANONYMOUS, reservation, Spending(1, 0.25))
  assert book.spent() == (1, 0.25)
  assert 'cannot be stored' in caplog.text


def test_a_line_that_a_kill_cut_off_is_ignored_and_ended_by_the_next(tmp_path):
  path = tmp_path / 'budget.json'
  ledger(path, dollars_per_day=1).reserve(ANONYMOUS, Spending(1, 0.25))
  with path.open('a') as file:
    file.write('{"version": 1, "da')
  book = ledger(path, dollars_per_day=1)
  assert book.spent() == (1, 0.25)
  book.reserve(ANONYMOUS, Spending(1, 0.25))
  assert ledger(path, dollars_per_day=1).spent() == (2, 0.5)


def test_the_file_of_the_day_does_not_grow_without_end(tmp_path, monkeypatch):
  monkeypatch.setattr(budgets, 'MOST_BYTES', 1000)
  path = tmp_path / 'budget.json'
  book = ledger(path, tokens_per_day=10**9)
  for number in range(100):
    book.reserve(ANONYMOUS, Spending(1, 0))
    assert path.stat().st_size <= 1000
    assert state(path)['spent'][''] == [number + 1, 0]


def test_a_disk_that_fills_up_leaves_the_stored_day_complete(tmp_path, monkeypatch):
  path = tmp_path / 'budget.json'
  book = ledger(path, dollars_per_day=1)
  book.reserve(ANONYMOUS, Spending(1, 0.25))
  write = os.write

  def half(descriptor, data):
    if len(data) < 40:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(descriptor, data[: len(data) // 2])

  with monkeypatch.context() as patch:
    patch.setattr(os, 'write', half)
    with pytest.raises(ModelError, match='No space left'):
      book.reserve(ANONYMOUS, Spending(1, 0.25))
  assert ledger(path, dollars_per_day=1).spent() == (1, 0.25)
  book.reserve(ANONYMOUS, Spending(1, 0.5))
  assert ledger(path, dollars_per_day=1).spent() == (2, 0.75)


@pytest.mark.parametrize(
  'content',
  ['', '{', '[]\n', '{"version": 2, "day": "d", "spent": {}}\n', '{"version": 1, "day": "d"}\n',
   '{"version": 1, "day": "d", "spent": {"": [0, -1]}}\n',
   '{"version": 1, "day": "d", "spent": {"": [1e999, 0]}}\n', '{"day": 1}\n{"day": 2}\n'],
)  # fmt: skip
def test_a_damaged_day_is_refused(tmp_path, content):
  (tmp_path / 'budget.json').write_text(content)
  with pytest.raises(ValueError, match='remove it to begin the day anew'):
    ledger(tmp_path / 'budget.json')


def test_ceilings_out_of_range_are_refused():
  with pytest.raises(ValueError, match='dollars_per_day=-1'):
    Ceilings(dollars_per_day=-1)
  with pytest.raises(ValueError, match='tokens_per_day=0'):
    Ceilings(tokens_per_day=0)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1), st.floats(0, 1)), max_size=40))
def test_no_order_of_reservations_and_settlements_exceeds_the_ceiling(events):
  book, waiting, spent = ledger(dollars_per_day=2), [], 0.0
  for settles, amount, share in events:
    if settles and waiting:
      reservation = waiting.pop(0)
      spent += share * reservation.amount.dollars
      book.settle(ANONYMOUS, reservation, Spending(0, share * reservation.amount.dollars))
    else:
      with contextlib.suppress(LimitError):
        waiting.append(book.reserve(ANONYMOUS, Spending(0, amount)))
    assert spent <= 2 + 1e-9
    reserved = sum(reservation.amount.dollars for reservation in waiting)
    assert book.spent().dollars == pytest.approx(spent + reserved, abs=1e-9)
