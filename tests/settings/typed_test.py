"""Values against annotations: what is converted, what is refused, and in which words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytest
from etils import epath

from cascades import losses, types
from cascades.settings import typed
from cascades.training import setup


@pytest.mark.parametrize(
  ('value', 'hint', 'expected'),
  [
    ('false', bool, False), ('No', bool, False), ('OFF', bool, False), ('yes', bool, True),
    (0, bool, False), ('on', bool | None, True), ('none', bool | None, None),
    ('none', str | None, None), ('None', float | None, None), ('none', str, 'none'),
    ('none', Sequence[str] | None, None), ('3', int, 3), (3, float, 3), ('3e-4', float, 3e-4),
    ('inf', float, float('inf')), ('last', int | Literal['last'], 'last'), ('7', int | str, '7'),
    (7, int | Literal['last'], 7), ('SKIP', Literal['error', 'skip'], 'skip'),
    ('test', Sequence[str], ('test',)), (['a', 'b'], Sequence[str], ['a', 'b']),
    (2.0, Sequence[float], (2.0,)), (['a', 'b'], tuple[str, ...], ('a', 'b')),
    ({'x': 'y'}, Mapping[str, str] | Sequence[str], {'x': 'y'}),
    ('y', Mapping[str, str] | Sequence[str], ('y',)),
    ({'x': '3', 'y': 'none'}, Mapping[str, int | None], {'x': 3, 'y': None}),
    (['no', True], list[bool], [False, True]), (('test',), str, 'test'),
    ('x', epath.PathLike, 'x'), (len, Callable[..., int], len), ('anything', Any, 'anything'),
    ([('a', 'b'), ('c', None)], Sequence[tuple[str, str | None]], [('a', 'b'), ('c', None)]),
  ],
)  # fmt: skip
def test_values_become_what_the_annotation_wants(value, hint, expected):
  fitted = typed.fit(value, hint)
  assert fitted == expected
  assert type(fitted) is type(expected)


@pytest.mark.parametrize(
  ('value', 'hint', 'message'),
  [
    ('64k', int, "X is the text '64k'; expected a whole number."),
    (4.5, int, 'X is 4.5; expected a whole number.'),
    (1e1, int, 'X is 10.0; expected a whole number, written 10.'),
    (True, int, 'X is True; expected a whole number.'),
    ('fast', float, "X is the text 'fast'; expected a number."),
    ('nan', float, "X is the text 'nan'; expected a number."),
    (None, int, 'X is None; expected a whole number.'),
    ('maybe', bool, "X is the text 'maybe'; expected True or False."),
    (2, bool, 'X is 2; expected True or False.'),
    ('skp', Literal['error', 'skip'], "X is the text 'skp'; expected 'error' or 'skip'."),
    ('x', Callable[..., int], "X is the text 'x'; expected a function."),
    ('x', losses.CascadeLoss, "X is the text 'x'; expected a function (CascadeLoss)."),
    ('x', types.Vocabulary | None, "X is the text 'x'; expected a Vocabulary, or None."),
    ('x', setup.SmallModel, "X is the text 'x'; expected a SmallModel."),
    ({'a': 'b'}, Mapping[str, int], "X['a'] is the text 'b'; expected a whole number."),
    (['a', 3], Sequence[str], 'X[1] is 3; expected a text.'),
    (5, Mapping[str, int], 'X is 5; expected a mapping {key: value}, each value a whole number.'),
    (['a', 'b'], str, "X is ['a', 'b']; expected a text."),
    ((1, 2, 3), tuple[int, int], 'X is (1, 2, 3); expected a list, each item a whole number.'),
  ],
)
def test_other_values_are_named_with_what_is_expected(value, hint, message):
  with pytest.raises(typed.MisfitError) as error:
    typed.fit(value, hint, where='X')
  assert str(error.value) == message


@pytest.mark.parametrize(
  ('value', 'raw', 'hint', 'expected'),
  [
    (20261128, '20261128', str, '20261128'), (1000.0, '1e3', str | None, '1e3'),
    (7, '007', Sequence[str], ('007',)), (1.0, '1.0', float, 1.0), (True, 'True', bool, True),
  ],
)  # fmt: skip
def test_a_number_that_was_typed_is_a_fine_name(value, raw, hint, expected):
  assert typed.fit(value, hint, raw=raw) == expected
