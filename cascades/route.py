"""Route prompts among models that join and leave, from their errors on a validation set.

    python -m cascades.route --gin_file=runs/route.gin --gin.MODE=fit --gin.ROUTER=router.json
      --gin.OUTCOMES=validation.csv --gin.PROMPTS=prompts.jsonl --gin.COSTS=costs.csv

`fit` clusters the PROMPTS, and describes each model of OUTCOMES, answers to some of them, by its
mean loss in each cluster. `add` appends the models of OUTCOMES to ROUTER. `plan` writes which
validation prompts to ask a new model first. `evaluate` draws prompts and unseen models of OUTCOMES
many times, and writes the curves of quality against cost with bands: routing.json, routing.png and
routing.svg.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from etils import epath

from cascades import validation_order
from cascades.evaluation import router_trials, routers
from cascades.predictions import outcomes
from cascades.predictions.outcomes import AnswerFiles
from cascades.reporting import figures, router_figures
from cascades.runtime import files, locking

log = logging.getLogger(__name__)

DRAWS = 200  # of random prompts, with which planned ones are compared


@dataclasses.dataclass(frozen=True)
class RouteOptions:
  """Options of the router and of its trials.

  Attributes:
    clusters: Number of clusters of prompts.
    strength: Number of answers that a model's mean loss counts for in each cluster.
    predict_missing: Predict the answers that a model which joins has not given from those of the
      router's models; needed where its prompts were planned.
    count: Number of prompts to plan.
    trials: Number of trials.
    unseen: Share of the models that are unseen in a trial.
    seed: Seed of all draws.
  """

  clusters: int = 25
  strength: float = 24.0
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
    if not 0 < self.unseen <= 1:
      raise ValueError(f'UNSEEN={self.unseen}; it must be a share above 0, up to 1.')


def route(
  mode: Literal['fit', 'add', 'plan', 'evaluate'],
  router: str,
  answers: AnswerFiles,
  options: RouteOptions,
  *,
  overwrite: bool = False,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Fits a router, adds models to it, plans their prompts, or evaluates routers over trials.

  Args:
    mode: The task.
    router: File of the router; of `evaluate`, the folder to write to; `plan` writes beside it.
    answers: Files of the models' answers.
    options: Options of the task.
    overwrite: Replace another router, plan or evaluation instead of refusing.
    provenance: Function that says how the result was made.

  Raises:
    FileExistsError: The output exists.
    FileNotFoundError: A file is missing.
    ValueError: A file cannot be read, or the answers do not fit.
  """
  path = files.absolute(router)
  tasks = {'fit': _fit, 'add': _add, 'plan': _plan, 'evaluate': _evaluate}
  if mode not in tasks:
    raise ValueError(f'MODE={mode!r:.80} is none of {", ".join(tasks)}.')
  if mode == 'evaluate' and path.is_file():
    raise FileExistsError(f'ROUTER={router} is a file; MODE=evaluate writes to a folder: name one.')
  if mode != 'evaluate' and path.is_dir():
    raise IsADirectoryError(f'ROUTER={router} is a folder; MODE={mode} takes the file of a router.')
  if mode in ('add', 'plan') and not path.exists():
    raise FileNotFoundError(f'ROUTER={router} does not exist: make it with MODE=fit first.')
  output = {
    'plan': path.parent / f'{path.stem}.plan.csv', 'evaluate': path / 'routing.json'
  }.get(mode, path)  # fmt: skip
  if mode != 'add' and output.exists() and not overwrite:
    raise FileExistsError(f'{output} exists: choose another ROUTER, or replace it, OVERWRITE=True.')
  with locking.held(output.parent):
    tasks[mode](path, output, answers, options, provenance)


def _fit(
  path: epath.Path, output: epath.Path, answers: AnswerFiles, options: RouteOptions, _: object
) -> None:
  matrix = answers.read(with_prompts=True)
  prompts = list(outcomes.texts(answers.prompts).values()) if answers.prompts else matrix.prompts
  fitted = routers.fit(
    matrix, prompts, clusters=options.clusters, strength=options.strength, seed=options.seed
  )
  routers.write(output, fitted)
  _show(path, fitted, matrix.models)


def _add(
  path: epath.Path, output: epath.Path, answers: AnswerFiles, options: RouteOptions, _: object
) -> None:
  matrix = answers.read()
  grown = routers.read(path).add(matrix, predict=options.predict_missing)
  routers.write(output, grown)
  _show(path, grown, matrix.models, predicted=options.predict_missing)


def _show(
  path: epath.Path,
  router: routers.ClusterRouter,
  names: tuple[str, ...],
  *,
  predicted: bool = False,
) -> None:
  total = len(router.ids)
  missing = 'predicted' if predicted else 'left out'
  for name, cost, psi, count in zip(*router.pool, strict=True):
    if name in names:
      note = '' if count == total else f'; {total - count} without an answer are {missing}'
      log.info(
        '%s: cost %g, %d of %d validation prompts answered%s; mean loss by cluster %.3f to %.3f',
        name, cost, count, total, note, psi.min(), psi.max(),
      )  # fmt: skip
  log.info('%s: %d models, %d clusters', path, len(router.pool.names), router.pool.psi.shape[1])


def _plan(
  path: epath.Path, output: epath.Path, _: AnswerFiles, options: RouteOptions, __: object
) -> None:
  router = routers.read(path)
  factors = validation_order.factors(router.arrays['losses'])
  groups, count = router.groups, min(options.count, len(router.ids))
  planned = validation_order.order(factors, groups, count)
  rng = np.random.default_rng(options.seed)
  random = [rng.permutation(len(router.ids))[:count] for _ in range(DRAWS)]
  errors = [validation_order.standard_error(factors, groups, asked) for asked in random]
  table = io.StringIO()
  csv.writer(table, lineterminator='\n').writerows([['id'], *([router.ids[i]] for i in planned)])
  files.write(output, table.getvalue())
  log.info(
    '%s: %d prompts; expected standard error of a mean loss %.4f, of random prompts %.4f',
    output, count, validation_order.standard_error(factors, groups, planned), np.mean(errors),
  )  # fmt: skip
  log.info('Join with MODE=add and PREDICT_MISSING=True: planned prompts are no sample of all.')


def _evaluate(
  path: epath.Path, output: epath.Path, answers: AnswerFiles, options: RouteOptions,
  provenance: Callable[[], Mapping[str, str]],
) -> None:  # fmt: skip
  trials = router_trials.run(
    answers.read(with_prompts=True), trials=options.trials, unseen=options.unseen,
    clusters=options.clusters, strength=options.strength, seed=options.seed,
  )  # fmt: skip
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
    router_trials.ROUTER, router_trials.CONTROL, *test,
  )  # fmt: skip
  figure = router_figures.draw(router_trials.SHARES, trials.quality)
  for image_format in figures.FORMATS:
    files.write(path / f'routing.{image_format}', figures.encode(figure, image_format))
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
    'provenance': dict(provenance()),
  }
  files.write(output, json.dumps(contents, indent=1) + '\n')
  log.info('%s: %d trials, with routing.png and routing.svg beside it', output, options.trials)


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.route')
