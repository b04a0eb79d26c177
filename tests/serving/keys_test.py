"""Keys of clients: files and variables of them, comparison, rates."""

import hashlib
import os

import pytest

from cascades.serving import keys
from cascades.serving.keys import ApiKey, KeyLimits, LimitError, RequestRates

TOKEN, OTHER = 'a-token-of-alice-123', 'a-token-of-bob-45678'
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()


def write(path, text, mode=0o600):
  path.write_text(text)
  os.chmod(path, mode)
  return path


def test_a_file_names_clients_with_digests_tokens_and_limits(tmp_path):
  path = write(
    tmp_path / 'keys.toml',
    f'[alice]\nsha256 = "{DIGEST}"\nrequests_per_minute = 60\n'
    f'[bob]\ntoken = "{OTHER}"\ndollars_per_day = 0.5\n',
  )
  alice, bob = keys.read(path)
  assert (alice.name, alice.limits) == ('alice', KeyLimits(requests_per_minute=60))
  assert bob.limits.dollars_per_day == 0.5
  assert keys.find([alice, bob], f'Bearer {TOKEN}') == alice
  assert keys.find([alice, bob], f'bearer  {OTHER} ') == bob
  for wrong in (None, '', TOKEN, f'Basic {TOKEN}', f'Bearer {DIGEST}', 'Bearer ', 'Bearer \ud83d'):
    assert keys.find([alice, bob], wrong) is None


def test_all_keys_are_compared_in_constant_time(monkeypatch):
  compared = []
  monkeypatch.setattr(
    keys.hmac, 'compare_digest', lambda a, b: compared.append((len(a), len(b))) or a == b
  )
  table = keys.from_environment('T', {'T': f'alice:{TOKEN},bob:{OTHER}'})
  assert keys.find(table, f'Bearer {TOKEN}').name == 'alice'
  assert compared == [(32, 32)] * 2


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    ('[alice', 'keys.toml is no file of keys'),
    ('', 'it has no key'),
    ('alice = 3', 'alice: Expected `object`, got `int`'),
    ('[alice]', 'alice: expected either a token or its sha256'),
    (f'[alice]\ntoken = "{TOKEN}"\nsha256 = "{DIGEST}"', 'either a token or its sha256'),
    ('[alice]\ntoken = "short"', 'length >= 16'),
    ('[alice]\ntoken = "with a space in it"', 'no header takes'),
    (f'[alice]\nsha256 = "{DIGEST[:-1]}"', 'matching regex'),
    (f'[alice]\ntoken = "{TOKEN}"\nrequests = 3', 'unknown field `requests`'),
    (f'[alice]\ntoken = "{TOKEN}"\nconcurrent = 0', 'concurrent=0 must be'),
    (f'[alice]\ntoken = "{TOKEN}"\n[bob]\ntoken = "{TOKEN}"', 'two keys have one name, or one'),
    (f'["a b"]\ntoken = "{TOKEN}"', 'a name has 1 to 64 letters'),
  ],
)
def test_a_bad_file_is_refused_without_showing_a_token(tmp_path, text, reason):
  with pytest.raises(ValueError, match=reason) as error:
    keys.read(write(tmp_path / 'keys.toml', text))
  assert TOKEN not in str(error.value)
  assert error.value.__suppress_context__


def test_tokens_that_others_can_read_are_refused_and_digests_are_not(tmp_path):
  with pytest.raises(ValueError, match='chmod 600'):
    keys.read(write(tmp_path / 'tokens', f'[alice]\ntoken = "{TOKEN}"', 0o640))
  assert keys.read(write(tmp_path / 'digests', f'[alice]\nsha256 = "{DIGEST}"', 0o644))


def test_a_file_that_is_no_text_is_refused(tmp_path):
  (tmp_path / 'keys').write_bytes(b'\xff\xfe')
  with pytest.raises(ValueError, match='UnicodeDecodeError'):
    keys.read(tmp_path / 'keys')


def test_a_variable_holds_one_token_or_several_with_names():
  (key,) = keys.from_environment('T', {'T': TOKEN}, limits=KeyLimits(concurrent=2))
  assert (key.name, key.limits.concurrent) == ('default', 2)
  assert [key.name for key in keys.from_environment('T', {'T': f'a:{TOKEN}, b:{OTHER}'})] == [
    'a', 'b',
  ]  # fmt: skip


@pytest.mark.parametrize('value', [None, '', 'short', f'{TOKEN},{OTHER}', f'a:{TOKEN},b:{TOKEN}'])
def test_a_variable_without_keys_is_refused_without_showing_it(value):
  with pytest.raises(ValueError, match=r'^(The environment has no variable|T holds no keys)') as e:
    keys.from_environment('T', {} if value is None else {'T': value})
  assert not value or value not in str(e.value)


def test_requests_a_minute_are_exact_in_any_minute():
  now = [0.0]
  rates, key = RequestRates(lambda: now[0]), ApiKey('alice', b'', KeyLimits(requests_per_minute=2))
  admitted, waits = [], []
  for second in range(0, 180, 7):
    now[0] = float(second)
    try:
      with rates.admitted(key):
        admitted.append(second)
    except LimitError as error:
      waits.append(second + error.retry_after == admitted[-2] + 60)
  assert admitted == [0, 7, 63, 70, 126, 133]
  assert waits == [True] * 20


def test_concurrent_requests_end_with_their_context_however_it_ends():
  rates, key = RequestRates(), ApiKey('alice', b'', KeyLimits(concurrent=1))
  with rates.admitted(key):
    with rates.admitted(ApiKey('bob', b'', KeyLimits(concurrent=1))):
      pass
    with pytest.raises(LimitError, match='1 requests at once'), rates.admitted(key):
      pass
  with pytest.raises(KeyError), rates.admitted(key):
    raise KeyError
  with rates.admitted(key):
    pass
