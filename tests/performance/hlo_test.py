"""Parsing of compiled programs: shapes, computations, and iterations of loops."""

import jax
import jax.numpy as jnp
import pytest

from cascades.performance import hlo
from cascades.performance.hlo import Shape
from tests import hlo_programs


def test_shapes_are_read_with_their_type_and_memory():
  text = '(bf16[2048,640]{0,1:T(8,128)(2,1)S(1)}, /*index=1*/u32[]{:S(2)}, pred[3], f8e4m3fn[2])'
  shapes = hlo.shapes(text)
  assert shapes == (
    Shape('bf16', (2048, 640), 1), Shape('u32', (), 2), Shape('pred', (3,)),
    Shape('f8e4m3fn', (2,)),
  )  # fmt: skip
  assert [shape.bytes for shape in shapes] == [2048 * 640 * 2, 4, 3, 2]
  assert Shape('s4', (5,)).bytes == 3


def test_a_program_is_read_into_computations():
  program = hlo.parse(hlo_programs.WINDOWED)
  assert program.entry == 'main'
  assert program.devices == 8
  assert set(program.computations) == {'body', 'condition', 'main'}
  body = program.computations['body']
  assert body.root.op == 'tuple'
  assert body.root.operands == ['next', 'rows', 'later']
  assert body.instructions['rows'].number == 1
  assert body.instructions['wide'].shapes[2] == Shape('u32', ())


def test_a_loop_runs_from_its_start_to_its_bound_by_its_step():
  times = {e.name: e.times for e in hlo.executions(hlo.parse(hlo_programs.WINDOWED))}
  assert times == {'main': 1, 'body': 4}
  later = hlo_programs.WINDOWED.replace('%zero = u32[] constant(0)', '%zero = u32[] constant(3)')
  assert {e.name: e.times for e in hlo.executions(hlo.parse(later))}['body'] == 3


def test_a_loop_without_a_constant_trip_count_is_refused():
  text = hlo_programs.WINDOWED.replace('add(%count, %two)', 'multiply(%count, %two)')
  with pytest.raises(ValueError, match='number of iterations of the loop loop is not a constant'):
    hlo.executions(hlo.parse(text))


def test_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match='no ENTRY'):
    hlo.parse('HloModule nothing')


def test_the_trips_of_nested_scans_multiply():
  def layer(x, w):
    return jax.lax.fori_loop(0, 5, lambda _, y: jnp.sin(y @ w), x), None

  compiled = jax.jit(lambda x, ws: jax.lax.scan(layer, x, ws)[0]).lower(
    jnp.ones((4, 8)), jnp.ones((3, 8, 8))
  )
  program = hlo.parse(compiled.compile().as_text())
  products = sum(
    execution.times
    for execution in hlo.executions(program)
    for instruction in execution.computation.instructions.values()
    if instruction.op == 'dot'
  )
  assert products == 15


def test_a_counter_inside_fusions_is_read():
  """TPU programs compare and add inside fusions, whose constants are passed in or their own."""
  text = hlo_programs.WINDOWED.replace(
    'u32[]{:T(128)} add(%count, %two)',
    'u32[]{:T(128)} fusion(%count, %two), kind=kLoop, calls=%adding',
  ).replace(
    'pred[]{:T(512)} compare(%count.1, %eight), direction=LT',
    'pred[]{:T(512)} fusion(%eight, %count.1), kind=kLoop, calls=%comparing',
  )
  head, rest = text.split('\n', 1)
  program = hlo.parse(head + hlo_programs.COUNTING + rest)
  assert {e.name: e.times for e in hlo.executions(program)}['body'] == 4


def test_the_annotation_of_xla_takes_precedence():
  scan = lambda xs: jax.lax.scan(lambda c, x: (jnp.sin(c + x), c), jnp.ones(4), xs)
  text = jax.jit(scan).lower(jnp.ones((7, 4))).compile().as_text()
  assert max(e.times for e in hlo.executions(hlo.parse(text))) == 7
  assert '"known_trip_count":{"n":"7"' in text
  text = text.replace('"known_trip_count":{"n":"7"', '"known_trip_count":{"n":"9"')
  assert max(e.times for e in hlo.executions(hlo.parse(text))) == 9


def test_constants_of_several_lines_do_not_end_a_computation():
  text = hlo_programs.WINDOWED.replace(
    '  %zero = u32[] constant(0)\n',
    '  %rows = s32[2,2]{1,0} constant({\n  { 1, 2 },\n{ 3, 4 }\n}}, metadata={}\n})\n'
    '  %zero = u32[] constant(0)\n',
  )
  assert hlo.executions(hlo.parse(text))[1].times == 4
