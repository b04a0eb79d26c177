import numpy as np

from cascades.evaluation.quantities import LARGE
from cascades.reporting import findings, summary, terminal
from tests import synthetic_tables


def of_curve(quality, *, baselines=None, metric='accuracy'):
  """Sentences on one small model whose curve has these qualities at equal steps."""
  comparison = synthetic_tables.comparison(metric)
  rates = np.linspace(0, 1, len(quality))
  curve = comparison.at('cat').curve._replace(quality=np.array(quality), deferral_rate=rates)
  cascades = [
    cascade._replace(curve=curve) for cascade in comparison.cascades if cascade.model == 'cat'
  ]
  manifests = {
    model: [manifest | {'baselines': baselines or {}} for manifest in own]
    for model, own in comparison.manifests.items()
  }
  return findings.sentences(
    comparison._replace(
      flops={'cat': 1000.0}, cascades=tuple(cascades), manifests=manifests, differences=()
    )
  )


def test_a_large_model_that_is_no_better_is_said_early():
  (sentence,) = of_curve([0.735, 0.73, 0.72])
  assert 'the large model (0.7200) is not better than cat (0.7350)' in sentence
  assert 'no threshold can gain here' in sentence


def test_two_models_of_different_errors_may_gain_although_the_large_one_is_not_better():
  (sentence,) = of_curve([0.7, 0.75, 0.7])
  assert 'is not better than cat' in sentence
  assert 'at best 0.7500 with 50.0 % deferred' in sentence
  assert 'no threshold' not in sentence


def test_a_large_model_above_the_whole_curve_is_said_in_words():
  (sentence,) = of_curve([0.5, 0.6, 0.8])
  assert 'lies above every cascade with cat (0.5000 alone)' in sentence
  assert 'saves cost, not errors' in sentence


def test_a_cascade_above_both_models_is_said_with_its_rate():
  (sentence,) = of_curve([0.5, 0.9, 0.8])
  assert 'reaches at best 0.9000 with 50.0 % deferred' in sentence


def test_a_cascade_that_only_equals_the_large_model_is_said_with_its_rate():
  (sentence,) = of_curve([0.5, 0.8, 0.8])
  assert 'reaches the quality of the large model with 50.0 % deferred and never' in sentence


def test_where_lower_is_better_the_sentences_turn():
  (sentence,) = of_curve([0.2, 0.25, 0.3], metric='phoneme_error_rate')
  assert 'no threshold can gain here' in sentence


def test_cheap_answers_that_a_model_does_not_beat_are_named():
  baselines = {'most frequent target': {'accuracy': 0.5}, 'other': {'bleu': 99.0}}
  _, *sentences = of_curve([0.4, 0.6, 0.8], baselines=baselines)
  assert sentences == [
    f'most frequent target reaches 0.5000 on task {task}, better than cat: such a model has not '
    'learned the task.'
    for task in ('a', 'b')
  ]
  _, *sentences = of_curve([0.6, 0.7, 0.8], baselines=baselines)
  assert sentences == []


def test_baselines_are_a_table_of_the_report_and_of_the_terminal(capsys):
  comparison = synthetic_tables.comparison()
  manifests = dict(comparison.manifests)
  manifests[LARGE.name] = [
    manifest | {'baselines': {'most frequent target': {'accuracy': 0.25}}}
    for manifest in manifests[LARGE.name]
  ]
  assert 'Cheap baselines' not in [table.title for table in summary.tables(comparison)]
  comparison = comparison._replace(manifests=manifests)
  (table,) = [t for t in summary.tables(comparison) if t.title == 'Cheap baselines']
  assert [[cell.text for cell in row] for row in table.rows] == [
    [task, 'most frequent target', '0.2500'] for task in ('a', 'b')
  ]
  terminal.show(comparison)
  assert 'Cheap baselines' in capsys.readouterr().out
