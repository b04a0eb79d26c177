import io
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import image

from cascades import costs
from cascades.evaluation import quantities
from cascades.reporting import figures
from tests import synthetic_tables

HOSTILE = '$\\frac{\x1b[31m</text><script>alert(1)</script>\u202e_%s'


@pytest.fixture(scope='module')
def drawn():
  return figures.draw(synthetic_tables.comparison())


def renamed(name):
  """The comparison with that name in the place of a model, a score and a task."""
  comparison = synthetic_tables.comparison()

  def change(text):
    return name if text in ('cat', 'average', 'a') else text

  return comparison._replace(
    flops={change(model): flops for model, flops in comparison.flops.items()},
    answers={change(model): answers for model, answers in comparison.answers.items()},
    sizes={change(task): size for task, size in comparison.sizes.items()},
    scores=tuple(map(change, comparison.scores)),
    cascades=tuple(
      cascade._replace(
        model=change(cascade.model), score=change(cascade.score), task=change(cascade.task)
      )
      for cascade in comparison.cascades
    ),
    differences=tuple(
      pair._replace(model=change(pair.model), score=change(pair.score))
      for pair in comparison.differences
    ),
  )


def test_figures_are_drawn_when_they_have_something_to_show(drawn):
  assert set(drawn) == {
    'curves', 'scores', 'decomposition', 'separation', 'differences', 'tasks', 'shares',
    'reliability',
  }  # fmt: skip
  fewer = figures.draw(synthetic_tables.comparison()._replace(differences=(), sizes={'a': 70}))
  assert set(drawn) - set(fewer) == {'differences', 'tasks'}


@pytest.mark.parametrize(
  ('metric', 'label'),
  [
    ('accuracy', 'accuracy (up to 1)'),
    ('bleu', 'bleu (up to 100)'),
    ('phoneme_error_rate', 'phoneme error rate (up to 1, lower is better)'),
    ('edit_distance', 'edit distance (lower is better)'),
  ],
)
def test_the_axis_says_what_is_better_and_how_far_it_goes(metric, label):
  assert figures._label(synthetic_tables.comparison(metric)) == label


def test_the_headline_shows_the_curve_its_band_its_chord_and_the_models_alone(drawn):
  comparison = synthetic_tables.comparison()
  axes = drawn['curves'].axes[0]
  lines = {line.get_label(): line for line in axes.lines}
  curve = comparison.at('cat').curve
  np.testing.assert_allclose(lines['cat'].get_xydata(), np.stack([curve.cost, curve.quality], 1))
  np.testing.assert_allclose(
    lines['large alone'].get_xydata(), [[comparison.large_flops, curve.quality[-1]]]
  )
  ends = np.stack([curve.cost[[0, -1]], curve.quality[[0, -1]]], axis=1)
  assert any(
    line.get_xydata().shape == (2, 2) and np.allclose(line.get_xydata(), ends)
    for line in axes.lines
  )
  band = axes.collections[1].get_paths()[0].vertices
  small, large = comparison.flops['cat'], comparison.large_flops
  cost = costs.cascade(quantities.RATES, small=small, large=large)
  assert band[:, 0].min() == pytest.approx(cost[0])
  assert band[:, 1].max() == pytest.approx(comparison.at('cat').high.max())
  texts = [text.get_text() for text in axes.get_legend().get_texts()]
  assert texts == ['xent', 'cat', 'small alone', 'random deferral', 'large alone']


def line(axes, label):
  (only,) = [line for line in axes.lines if line.get_label() == label]
  return only.get_xdata(), only.get_ydata()


def test_scores_are_drawn_above_the_chord_of_their_model(drawn):
  comparison = synthetic_tables.comparison()
  for axes, model in zip(drawn['scores'].axes, ('xent', 'cat'), strict=True):
    assert axes.get_title(loc='left') == model
    for score in comparison.scores:
      curve = comparison.at(model, score).curve
      chord = curve.quality[0] + curve.deferral_rate * (curve.quality[-1] - curve.quality[0])
      rate, gain = line(axes, score)
      np.testing.assert_allclose(rate, curve.deferral_rate)
      np.testing.assert_allclose(gain, curve.quality - chord)


def test_contributions_are_drawn_apart_and_summed(drawn):
  cascade = synthetic_tables.comparison().at('cat')
  small, large = cascade.small_contribution, cascade.large_contribution
  for axes, values in zip(
    drawn['decomposition'].axes, (small, large, cascade.curve.quality), strict=True
  ):
    np.testing.assert_allclose(line(axes, 'cat')[1], values)


def test_every_task_has_a_panel_with_its_own_curves(drawn):
  for axes, task in zip(drawn['tasks'].axes, ('a', 'b'), strict=True):
    assert axes.get_title(loc='left') == task
    curve = synthetic_tables.comparison().at('cat', task=task).curve
    np.testing.assert_allclose(line(axes, 'cat'), [curve.deferral_rate, curve.quality])


def test_differences_are_drawn_with_their_bands(drawn):
  (axes,) = drawn['differences'].axes
  pair = synthetic_tables.comparison().differences[0]
  assert axes.get_title(loc='left') == 'cat \N{MINUS SIGN} xent'
  np.testing.assert_allclose(axes.lines[1].get_ydata(), pair.quality)
  band = axes.collections[0].get_paths()[0].vertices[:, 1]
  assert (band.min(), band.max()) == pytest.approx((pair.low.min(), pair.high.max()))


@pytest.mark.parametrize('metric', ['accuracy', 'phoneme_error_rate'])
def test_the_histogram_counts_where_the_large_model_is_better(metric):
  comparison = synthetic_tables.comparison(metric)
  axes = figures.draw(comparison)['separation'].axes[0]
  answers = comparison.answers['xent']
  better = answers.large_quality - answers.small_quality
  better = better < 0 if metric == 'phoneme_error_rate' else better > 0
  low, high = np.quantile(answers.score, [0.005, 0.995])
  shown = (answers.score >= low) & (answers.score <= high)
  (patch,) = [patch for patch in axes.patches if patch.get_label() == 'large model better']
  assert patch.get_data().values.sum() == (better & shown).sum()


@pytest.mark.parametrize(
  ('metric', 'corner'), [('accuracy', 'lower right'), ('phoneme_error_rate', 'upper right')]
)
def test_the_legend_leaves_room_for_the_curves(metric, corner):
  legend = figures.headline(synthetic_tables.comparison(metric)).axes[0].get_legend()
  assert legend._loc == legend.codes[corner]


def test_the_deferral_rate_is_on_top_only_where_models_cost_the_same(drawn):
  (top,) = drawn['curves'].axes[0].child_axes
  assert top.get_xlabel() == 'deferral rate'
  cost = costs.cascade(np.array([0.0, 0.3, 1.0]), small=2000.0, large=16000.0)
  to_rate, to_cost = top._functions
  np.testing.assert_allclose(to_rate(cost), [0, 0.3, 1], atol=1e-12)
  np.testing.assert_allclose(to_cost(np.array([0, 0.3, 1])), cost)
  comparison = synthetic_tables.comparison()
  unequal = figures.headline(comparison._replace(flops={'xent': 2000.0, 'cat': 3000.0}))
  assert len(unequal.axes[0].child_axes) == 0


def test_the_histogram_counts_every_example_between_its_ends(drawn):
  comparison = synthetic_tables.comparison()
  score = comparison.answers['xent'].score
  low, high = np.quantile(score, [0.005, 0.995])
  counted = sum(patch.get_data().values.sum() for patch in drawn['separation'].axes[0].patches)
  assert counted == ((score >= low) & (score <= high)).sum()


def test_equal_figures_have_equal_bytes_and_drawing_leaves_no_settings_behind(drawn):
  before = dict(mpl.rcParams)
  again = figures.draw(synthetic_tables.comparison())
  for name in figures.FORMATS:
    assert figures.encode(drawn['curves'], name) == figures.encode(again['curves'], name)
  assert dict(mpl.rcParams) == before


def test_png_is_an_image_and_svg_adapts_to_dark(drawn):
  picture = image.imread(io.BytesIO(figures.encode(drawn['curves'], 'png')))
  assert picture.shape[0] > 500
  assert picture.std() > 0.05
  text = figures.encode(drawn['curves'], 'svg').decode()
  ElementTree.fromstring(text)
  assert 'prefers-color-scheme:dark' in text
  assert 'currentColor' in text
  assert figures.INK not in text.split('</style>', 1)[1]


def test_names_are_drawn_as_they_are_written():
  drawn = figures.draw(renamed(HOSTILE))
  shown = '$\\frac{\\x1b[31m</text><script>alert'
  legend = drawn['curves'].axes[0].get_legend()
  assert [text.get_text() for text in legend.get_texts()][1].startswith(shown)
  for name in ('curves', 'separation', 'differences'):
    svg = figures.encode(drawn[name], 'svg').decode()
    tags = {element.tag.rpartition('}')[2] for element in ElementTree.fromstring(svg).iter()}
    assert 'script' not in tags
    assert '\x1b' not in svg
    assert '\u202e' not in svg


@pytest.mark.filterwarnings('ignore:Glyph')
@pytest.mark.parametrize('name', ['_hidden', '$', '$\\frac$', 'x' * 500, '日本', '', '\n'])
def test_any_name_can_be_drawn(name):
  with mpl.rc_context(figures.STYLE):
    figure = figures.headline(renamed(name))
  assert figures.encode(figure, 'png')
