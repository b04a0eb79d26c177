"""Route prompts among models that join and leave, from their errors on a validation set.

    python -m cascades.route --gin_file=runs/route.gin --gin.MODE=fit --gin.ROUTER=router.json
      --gin.OUTCOMES=validation.csv --gin.PROMPTS=prompts.jsonl --gin.COSTS=costs.csv
    python -m cascades.route ... --gin.MODE=fit --gin.ROUTER=router.json
      --gin.TABLES="{'small': 'runs/small/predictions', 'large': 'runs/large/predictions'}"

`fit` clusters the PROMPTS, and describes each model of OUTCOMES or TABLES, answers to some of them,
by its mean loss in each cluster. `add` appends models to ROUTER, `remove` takes MODELS away. `plan`
writes which validation prompts to ask a new model first. `choose` writes the model of each of the
PROMPTS at a PRICE or BUDGET, and how unlike the validation prompts they are. `policy` writes that
choice for programs. `evaluate` draws prompts and unseen models many times, and writes the curves of
quality against cost with bands: report.html, routing.json, routing.png and routing.svg.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from cascades import prompt_drift, validation_order
from cascades.evaluation import router_fits, router_pool, router_trials, routers, routing_policy
from cascades.evaluation.model_answers import ModelAnswers
from cascades.predictions import outcomes
from cascades.predictions.outcomes import OutcomeMatrix
from cascades.reporting import escaping, figures, router_figures, router_report
from cascades.runtime import files, locking

log = logging.getLogger(__name__)

DRAWS = 200  # of random prompts, with which planned ones are compared
WORDS, TABLES = 'words', 'tables'  # values of EMBEDDINGS besides folders
ALARM = 0.01  # p-value of drift below which it is a warning


@dataclasses.dataclass(frozen=True)
class RouteOptions:
  """Options of the router and of its trials.

  Attributes:
    clusters: Number of clusters of prompts.
    strength: Number of answers that a model's mean loss counts for in each cluster.
    method: 'clusters'; 'learned map', which weighs the clusters by a softmax that is trained; or
      'hierarchical', fine clusters and coarse ones.
    embeddings: Vectors of the prompts: 'words', 'tables' for those beside TABLES, or the folder of
      an encoder.
    models: Names of the models to remove.
    price: Loss that a unit of cost must save.
    budget: Mean estimated cost on the validation prompts, in the place of a price.
    abstention: Quality of a prompt that nobody answers; None if each prompt is answered.
    predict_missing: Predict the answers that a model which joins has not given from those of the
      router's models; needed where its prompts were planned.
    count: Number of prompts to plan.
    trials: Number of trials.
    unseen: Share of the models that are unseen in a trial.
    seed: Seed of all draws.
  """

  clusters: int = 25
  strength: float = 24.0
  method: str = routers.CLUSTERS
  embeddings: str = WORDS
  models: Sequence[str] = ()
  price: float | None = None
  budget: float | None = None
  abstention: float | None = None
  predict_missing: bool = False
  count: int = 100
  trials: int = 50
  unseen: float = 1 / 3
  seed: int = 0

  def __post_init__(self) -> None:
    for name in ('clusters', 'count', 'trials'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name.upper()}={getattr(self, name)}; it must be 1 or more.')
    if not 0 <= self.strength < np.inf:
      raise ValueError(f'STRENGTH={self.strength}; it must be a finite number of 0 or more.')
    if self.method not in routers.METHODS:
      raise ValueError(f'METHOD={self.method!r:.80} is none of {", ".join(routers.METHODS)}.')
    if not 0 < self.unseen <= 1:
      raise ValueError(f'UNSEEN={self.unseen}; it must be a share above 0, up to 1.')
    if self.price is not None and (self.budget is not None or not self.price >= 0):
      raise ValueError(
        f'PRICE={self.price}, BUDGET={self.budget}; a price is 0 or more, and either one is given.'
      )

    if self.abstention is not None and not 0 <= self.abstention <= 1:
      raise ValueError(f'ABSTENTION={self.abstention}; a quality is a number from 0 to 1.')

  def price_for(self, router: routers.ClusterRouter) -> float:
    """The price, or that of the budget; 0 without either."""
    return router.price(self.budget) if self.budget is not None else self.price or 0.0


class _Task(NamedTuple):
  path: epath.Path
  output: epath.Path
  answers: ModelAnswers
  options: RouteOptions
  provenance: Callable[[], Mapping[str, str]]


def route(
  mode: Literal['fit', 'add', 'remove', 'plan', 'choose', 'policy', 'evaluate'],
  router: str,
  answers: ModelAnswers,
  options: RouteOptions,
  *,
  overwrite: bool = False,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Fits a router, changes its models, chooses by it, or evaluates routers over trials.

  Args:
    mode: The task.
    router: File of the router; of `evaluate`, the folder to write to. `plan`, `choose` and `policy`
      write beside it.
    answers: The models' answers.
    options: Options of the task.
    overwrite: Replace another output instead of refusing.
    provenance: Function that says how the result was made.

  Raises:
    FileExistsError: The output exists.
    FileNotFoundError: A file is missing.
    ValueError: A file cannot be read, or the answers do not fit.
  """
  path = files.absolute(router)
  tasks = {
    'fit': _fit, 'add': _add, 'remove': _remove, 'plan': _plan, 'choose': _choose,
    'policy': _policy, 'evaluate': _evaluate,
  }  # fmt: skip
  if mode not in tasks:
    raise ValueError(f'MODE={mode!r:.80} is none of {", ".join(tasks)}.')
  if mode == 'evaluate' and path.is_file():
    raise FileExistsError(f'ROUTER={router} is a file; MODE=evaluate writes to a folder: name one.')
  if mode != 'evaluate' and path.is_dir():
    raise IsADirectoryError(f'ROUTER={router} is a folder; MODE={mode} takes the file of a router.')
  if mode not in ('fit', 'evaluate') and not path.exists():
    raise FileNotFoundError(f'ROUTER={router} does not exist: make it with MODE=fit first.')
  output = {
    'plan': path.parent / f'{path.stem}.plan.csv',
    'choose': path.parent / f'{path.stem}.choices.csv',
    'policy': path.parent / f'{path.stem}.policy.json',
    'evaluate': path / 'routing.json',
  }.get(mode, path)
  if mode not in ('add', 'remove') and output.exists() and not overwrite:
    raise FileExistsError(f'{output} exists: choose another ROUTER, or replace it, OVERWRITE=True.')
  with locking.held(output.parent):
    tasks[mode](_Task(path, output, answers, options, provenance))


def _fit(task: _Task) -> None:
  options = task.options
  matrix = task.answers.read(with_prompts=True)
  fitted = router_fits.fit(
    matrix, _embedded(task, matrix), clusters=options.clusters, strength=options.strength,
    method=options.method, seed=options.seed,
  )  # fmt: skip
  routers.write(task.output, fitted)
  _show(task.path, fitted, matrix.models)


def _embedded(task: _Task, matrix: OutcomeMatrix) -> router_fits.Embedded:
  """Vectors of the training and the validation prompts."""
  answers, embeddings = task.answers, task.options.embeddings
  if embeddings == TABLES:
    if answers.prompts:
      raise ValueError(
        "EMBEDDINGS='tables' has vectors of the rows of TABLES alone: leave PROMPTS out, or give "
        'the folder of the encoder, EMBEDDINGS.'
      )
    by_id, encoder = answers.vectors()
    vectors = np.stack([by_id[name] for name in matrix.ids])
    return router_fits.Embedded(vectors, vectors, {}, encoder)
  own = answers.prompts
  train = list(outcomes.texts(own).values()) if own else list(matrix.prompts)
  if embeddings == WORDS:
    return router_fits.by_words(train, matrix.prompts, seed=task.options.seed)
  vectors = _encode([*train, *matrix.prompts], embeddings, task.output.parent)
  name = files.absolute(embeddings).name
  return router_fits.Embedded(vectors[: len(train)], vectors[len(train) :], {}, name)


def _encode(texts: Sequence[str], encoder: str, directory: epath.Path) -> Float[np.ndarray, 'N D']:
  from cascades.inference import encoders  # other tasks start without JAX

  store = directory / f'{encoders.identity(encoder)}.vectors.npz'
  return encoders.embed(texts, encoder, store)


def _add(task: _Task) -> None:
  matrix = task.answers.read()
  grown = routers.read(task.path).add(matrix, predict=task.options.predict_missing)
  routers.write(task.output, grown)
  _show(task.path, grown, matrix.models, predicted=task.options.predict_missing)


def _remove(task: _Task) -> None:
  smaller = routers.read(task.path).remove(task.options.models)
  routers.write(task.output, smaller)
  names = ', '.join(smaller.pool.names)
  log.info('%s: %d models are left: %s', task.path, len(smaller.pool.names), names)


def _show(
  path: epath.Path,
  router: routers.ClusterRouter,
  names: tuple[str, ...],
  *,
  predicted: bool = False,
) -> None:
  total = len(router.ids)
  missing = 'predicted' if predicted else 'left out'
  pool = router.pool
  by_group = [f', {own.min():g} to {own.max():g} by cluster' for own in pool.costs_by_group]
  for name, cost, psi, count, spread in zip(*pool[:4], by_group, strict=True):
    if name in names:
      note = '' if count == total else f'; {total - count} without an answer are {missing}'
      log.info(
        '%s: cost %g%s, %d of %d validation prompts answered%s; mean loss by cluster %.3f to %.3f',
        name, cost, '' if pool.group_cost is None else spread, count, total, note, psi.min(),
        psi.max(),
      )  # fmt: skip
  unanswered = int((router.groups.sum(axis=1) == 0).sum())
  if unanswered:
    log.info(
      '%d clusters have no validation prompt: models have their mean loss there%s', unanswered,
      ', or that of the cluster above' if {'parents', 'coarse_groups'} & {*router.arrays} else '',
    )  # fmt: skip
  for first, second in itertools.combinations(range(len(pool.names)), 2):
    if np.array_equal(*pool.psi[[first, second]]):
      log.warning(
        '%s and %s have equal losses in every cluster: the cheaper one is always chosen, of equal '
        'cost the first', pool.names[first], pool.names[second],
      )  # fmt: skip
  log.info('%s: %d models, %d clusters', path, len(pool.names), len(router.arrays['centroids']))


def _plan(task: _Task) -> None:
  router = routers.read(task.path)
  factors = validation_order.factors(router.arrays['losses'])
  groups, count = router.groups, min(task.options.count, len(router.ids))
  planned = validation_order.order(factors, groups, count)
  rng = np.random.default_rng(task.options.seed)
  random = [rng.permutation(len(router.ids))[:count] for _ in range(DRAWS)]
  errors = [validation_order.standard_error(factors, groups, asked) for asked in random]
  _write_csv(task.output, [['id'], *([router.ids[i]] for i in planned)])
  log.info(
    '%s: %d prompts; expected standard error of a mean loss %.4f, of random prompts %.4f',
    task.output, count, validation_order.standard_error(factors, groups, planned), np.mean(errors),
  )  # fmt: skip
  log.info('Join with MODE=add and PREDICT_MISSING=True: planned prompts are no sample of all.')


def _write_csv(path: epath.Path, rows: Sequence[Sequence[object]]) -> None:
  table = io.StringIO()
  csv.writer(table, lineterminator='\n').writerows(rows)
  files.write(path, table.getvalue())


def _choose(task: _Task) -> None:
  options = task.options
  router = routers.read(task.path).abstaining(options.abstention)
  prompts = outcomes.texts(task.answers.prompts) if task.answers.prompts else {}
  if not prompts:
    raise ValueError('MODE=choose chooses a model for each of PROMPTS: give their texts by id.')
  if router.encoder and options.embeddings not in (WORDS, TABLES):
    _check_encoder(router, options.embeddings)
    vectors = _encode([*prompts.values()], options.embeddings, task.output.parent)
  else:
    vectors = router.embed([*prompts.values()])
  price = options.price_for(router)
  tokens = router.tokens([*prompts.values()], outcomes.token_counts(task.answers.prompts or ''))
  models, (losses, costs) = router.rule(price)(vectors, tokens), router.predict(vectors, tokens)
  reference = router.reference()
  similarity = router.similarities([*prompts.values()], vectors)
  drift = prompt_drift.drift(similarity, reference)
  names, cost = router.pool.names, costs[np.arange(len(models)), models]
  _write_csv(task.output, [
    ['id', 'model', 'cost', 'predicted_loss', 'drift'],
    *(
      [*map(escaping.cell, (name, names[model])), paid, f'{own[model]:.6g}', f'{d:.6g}']
      for name, model, paid, own, d in zip(prompts, models, cost, losses, drift, strict=True)
    ),
  ])  # fmt: skip
  for model, count in zip(*np.unique(models, return_counts=True), strict=True):
    log.info('%s: %d of %d prompts', names[model] or 'nobody', count, len(models))
  log.info('%s: mean cost %.6g at the price %.6g', task.output, cost.mean(), price)
  test = prompt_drift.compare(similarity, reference)
  log.log(
    logging.WARNING if test.p < ALARM else logging.INFO,
    'drift %.3f, of 0.5 for prompts like the validation prompts, p %.2g%s', test.mean, test.p,
    '; predicted losses may not hold: validate on prompts like these' if test.p < ALARM else '',
  )  # fmt: skip


def _check_encoder(router: routers.ClusterRouter, folder: str) -> None:
  if (name := files.absolute(folder).name) != router.encoder:
    raise ValueError(
      f'EMBEDDINGS={folder} is the encoder {name!r}, and the router was fitted with '
      f'{router.encoder!r}: give that one.'
    )


def _policy(task: _Task) -> None:
  router, options = routers.read(task.path), task.options
  folder = None
  if router.encoder:
    if options.embeddings in (WORDS, TABLES):
      router.embed([])  # says that the folder of the encoder is needed
    _check_encoder(router, options.embeddings)
    folder = str(files.absolute(options.embeddings))
  price = options.price_for(router.abstaining(options.abstention))
  policy = routing_policy.describe(task.path, price, folder, options.abstention)
  routing_policy.write(task.output, policy)
  log.info(
    '%s: price %.6g; on the validation prompts a mean cost of %.6g and a predicted loss of %.4f',
    task.output, policy.price, policy.expected_cost, policy.expected_loss,
  )  # fmt: skip


def _evaluate(task: _Task) -> None:
  path, options = task.path, task.options
  matrix = task.answers.read(with_prompts=True)
  vectors = None if options.embeddings == WORDS else _embedded(task, matrix).validation
  drawing = partial(
    router_trials.draws, matrix, vectors, unseen=options.unseen, clusters=options.clusters,
    seed=options.seed,
  )  # fmt: skip
  trials = router_trials.run(
    drawing(trials=options.trials), options.trials, options.strength, method=options.method
  )
  test = trials.sign_test()
  for name, numbers in trials.numbers.items():
    area, half, qnc, peak = np.array(numbers).T
    reached = np.median(qnc)
    log.info(
      '%s: area %.4f [%.4f, %.4f], area (50 %%) %.4f, QNC %s, peak %.4f',
      name, area.mean(), *np.percentile(area, router_figures.BAND), half.mean(),
      f'{reached:.1%}' if np.isfinite(reached) else 'never', peak.mean(),
    )  # fmt: skip
  log.info(
    '%s has the larger area than %s in %d trials and the smaller in %d: p %.2g (sign test)',
    options.method, router_trials.CONTROL, *test,
  )  # fmt: skip
  figure = router_figures.draw(router_trials.SHARES, trials.quality)
  images = {name: figures.encode(figure, name) for name in figures.FORMATS}
  for image_format, image in images.items():
    files.write(path / f'routing.{image_format}', image)
  first = next(drawing(trials=1))
  pool = router_pool.describe(
    matrix, first, method=options.method, strength=options.strength, seed=options.seed
  )
  files.write(path / 'report.html', router_report.render(pool, trials, images['svg']))
  contents = {
    'options': dataclasses.asdict(options),
    'cost shares': router_trials.SHARES.tolist(),
    'quality': {name: values.tolist() for name, values in trials.quality.items()},
    'numbers': {
      name: [
        {key: float(v) if np.isfinite(v) else None for key, v in own._asdict().items()}
        for own in numbers
      ]
      for name, numbers in trials.numbers.items()
    },
    'test rows': trials.test_rows,
    'sign test': test._asdict(),
    'provenance': dict(task.provenance()),
  }
  files.write(task.output, json.dumps(contents, indent=1) + '\n')
  log.info(
    '%s: %d trials, with report.html, routing.png and routing.svg beside it',
    task.output,
    options.trials,
  )


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.route')
