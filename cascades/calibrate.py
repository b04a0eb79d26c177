"""Find thresholds that keep promises on unseen rows, and write them to a policy.

    python -m cascades.calibrate --gin_file=runs/calibrate.gin
      --gin.SMALL=runs/small/predictions --gin.LARGE=runs/large/predictions
      --gin.QUALITY=0.8 --gin.POLICY=policy.json

Reads the tables of validation rows that `infer` wrote, and writes POLICY: models, decider,
thresholds, and the promises with what is expected at them. If the rows cannot support the promises
it says how many more would, writes nothing, and exits with code 3. With --check it calibrates a
thousand times on draws from the rows, and reports how often the promises were kept. With CHAIN the
policy is one of more models, SMALL of each by name, each with a threshold of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from etils import epath

from cascades import __version__
from cascades import metrics as metric_library
from cascades.evaluation import calibration, chain_calibration, chain_judgements, chain_policy
from cascades.evaluation import fitted as fitted_files
from cascades.evaluation import learned as learning
from cascades.evaluation import policy as policies
from cascades.evaluation.calibration import Demands, Judged
from cascades.evaluation.chain_calibration import CalibratedChain, ChainOptions
from cascades.evaluation.chain_judgements import JudgedRows
from cascades.evaluation.chain_policy import ChainLevel, ChainPolicy, RouterFile
from cascades.evaluation.learned import Learned
from cascades.evaluation.policy import DeciderEntry, MetricEntry, Policy
from cascades.evaluation.routers import TokenCounts
from cascades.evaluation.routing_policy import Beginning
from cascades.evaluation.tables import Tables
from cascades.guarantees import Risk, Simulation
from cascades.inference import prompt_routing
from cascades.learned_deferral import METHODS
from cascades.predictions import alignment
from cascades.reporting import escaping, figures, promises
from cascades.rule_guarantees import RuleRisk
from cascades.runtime import files, locking
from cascades.types import Predictions

CHAIN_METHOD = (
  'thresholds that no others beat in quality and cost on one half of the rows, in the order of '
  'their cost there; fixed-sequence testing of them on the other half, with tests that are exact '
  'for finitely many rows; rows are taken for independent draws'
)
METHOD = (
  'fixed-sequence testing of all thresholds, from the one that keeps the promise most easily, each '
  'with a test that is exact for finitely many rows; rows are taken for independent draws'
)


def calibrate(
  tables: Tables,
  output: str,
  demands: Demands,
  *,
  decider: str = 'average',
  metric: str | None = None,
  surrogate: bool = False,
  by_task: bool = False,
  check: bool = False,
  draws: int = 1000,
  chain: ChainOptions = ChainOptions(),
  overwrite: bool = False,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> Policy | ChainPolicy:
  """Certifies thresholds for the demands and writes the policy.

  Args:
    tables: Tables of one small model and the large one.
    output: File to write, local or remote.
    demands: Promises that the policy must keep.
    decider: Name of the decider whose score has a threshold, or the NAME.json of a learned one, or
      a name in `learned_deferral.METHODS`: it is fitted on half the rows, stored beside the policy,
      and the threshold is calibrated on the other half.
    metric: Name of the metric; None for the first of the tables.
    surrogate: Judge a corpus metric by its mean over single examples.
    by_task: Give each task a threshold and promises of its own.
    check: Also report how often the promises are kept on draws from the rows, and draw a figure
      beside the policy.
    draws: Number of draws of the check.
    chain: Chain of several models; without any the small model and the large one.
    overwrite: Replace another policy instead of refusing.
    provenance: Function that says how the policy was made, called after it.

  Returns:
    The policy.

  Raises:
    NotCertifiedError: The rows cannot support the promises.
    FileNotFoundError: A table is missing or incomplete.
    FileExistsError: `output` holds another policy.
    ValueError: The tables do not fit together, or a demand is out of range.
  """
  if draws < 1:
    raise ValueError(f'CHECK_DRAWS={draws}; a check needs one draw or more.')
  path = files.absolute(output)
  if chain.models:
    policies.check_output(path, None, overwrite=overwrite, read=chain_policy.read)
    with locking.held(path.parent):
      result = _chain(
        tables, path, demands, decider, metric, chain, provenance,
        surrogate=surrogate, by_task=by_task, draws=draws if check else 0,
      )  # fmt: skip
      chain_policy.write(path, result, overwrite=overwrite)
    promises.show_chain(result)
    print('Policy:', escaping.visible(str(path)))
    return result
  policies.check_output(path, None, overwrite=overwrite)
  embeddings = Learned([decider]).embeddings if decider in METHODS else tables.embeddings
  by_name, large = dataclasses.replace(tables, embeddings=embeddings).read()
  if len(by_name) != 1:
    raise ValueError(
      f'A policy is for one small model, and SMALL names {len(by_name)}: {", ".join(by_name)}. '
      'Name those of a longer one in order, CHAIN.'
    )
  ((name, small),) = by_name.items()
  judge = metric_library.by_name(large[0].manifest['metrics'][0] if metric is None else metric)
  small, large = ([alignment.judge(t, judge) for t in own] for own in (small, large))
  learned = None
  if decider in METHODS:
    learned, small, large = learning.fit_on_half(decider, tables, small, large, judge)
  chosen = policies.decider(decider) if learned is None else learned.decider()
  subsets = calibration.judged(
    small, large, judge, chosen,
    surrogate=surrogate, by_task=by_task, cost_axis=demands.cost_axis,
  )  # fmt: skip
  with locking.held(path.parent):
    if check:
      _check(path, subsets, demands, draws, calibration.check)
    versions = {library: metadata.version(library) for library in ('numpy', 'scipy')}
    thresholds = [calibration.calibrate(rows, demands) for rows in subsets]
    if learned is not None:  # in a folder of its rows, so that no other policy's is replaced
      folder = f'{path.stem}.learned-{policies.fingerprint(small[0])[:8]}'
      decider = str(fitted_files.write(path.parent / folder, learned))
    policy = Policy(
      version=policies.VERSION,
      models={
        'small': policies.describe_model(name, small[0]),
        'large': policies.describe_model(epath.Path(tables.large).name, large[0]),
      },
      decider=policies.describe_decider(decider),
      metric=MetricEntry(judge.name, surrogate, judge.higher_is_better),
      cost_axis=demands.cost_axis,
      thresholds=thresholds,
      data=_data(tables.split, {'small': small, 'large': large}),
      method=METHOD,
      provenance={'lm-cascades': __version__, **versions, **provenance()},
    )
    policies.write(path, policy, overwrite=overwrite)
  promises.show_policy(policy)
  print('Policy:', escaping.visible(str(path)))
  return policy


def _chain(
  tables: Tables,
  path: epath.Path,
  demands: Demands,
  decider: str,
  metric: str | None,
  chain: ChainOptions,
  provenance: Callable[[], Mapping[str, str]],
  *,
  surrogate: bool,
  by_task: bool,
  draws: int,
) -> ChainPolicy:
  """Policy of a chain, certified for the demands, and checked by so many draws."""
  by_name, large = tables.read()
  unknown = set(chain.models) - set(by_name) | set(chain.deciders) - {*chain.models, chain.large}
  if unknown or chain.large in chain.models or len(set(chain.models)) < len(chain.models):
    raise ValueError(
      f'CHAIN={[*chain.models]} and DECIDERS={dict(chain.deciders)} must name different models of '
      f'SMALL, {", ".join(by_name)}; the large one is LARGE_NAME={chain.large!r}.'
    )
  judge = metric_library.by_name(large[0].manifest['metrics'][0] if metric is None else metric)
  models = {name: by_name[name] for name in chain.models} | {chain.large: large}
  judged = {name: [alignment.judge(t, judge) for t in own] for name, own in models.items()}
  decided = [*chain.models, *([chain.large] if chain.abstention is not None else [])]
  entries = [
    policies.describe_decider(chain.deciders.get(name, decider)) if name in decided else None
    for name in models
  ]
  begins = router = None
  if chain.router is not None:
    router, begins = _router(chain.router, path, [*models])
  subsets = chain_judgements.judged(
    judged,
    [policies.decider(entry.fitted or entry.name) if entry else None for entry in entries],
    begins, judge, cost_axis=demands.cost_axis, abstention=chain.abstention,
    surrogate=surrogate, by_task=by_task,
  )  # fmt: skip
  if draws:
    _check(path, subsets, demands, draws, chain_calibration.check)
  results = [chain_calibration.calibrate(rows, demands) for rows in subsets]
  share = chain.abstention
  versions = {library: metadata.version(library) for library in ('numpy', 'scipy')}
  return ChainPolicy(
    version=chain_policy.VERSION,
    models={name: policies.describe_model(name, own[0]) for name, own in models.items()},
    levels=[
      _level(entry, results, number) if entry else None for number, entry in enumerate(entries)
    ],
    router=router,
    metric=MetricEntry(judge.name, surrogate, judge.higher_is_better),
    cost_axis=demands.cost_axis,
    expected=[result.expected for result in results],
    data=_data(tables.split, judged),
    method=CHAIN_METHOD,
    provenance={'lm-cascades': __version__, **versions, **provenance()},
    unanswered_quality=None
    if share is None
    else judge.scale * (share if judge.higher_is_better else 1 - share),
  )


def _level(entry: DeciderEntry, results: Sequence[CalibratedChain], number: int) -> ChainLevel:
  """Decision about the answers of one model."""
  thresholds = {result.expected.task: result.thresholds[number] for result in results}
  return ChainLevel(
    entry,
    {task: None if math.isinf(value) else value for task, value in thresholds.items()},
    [seen for result in results if (seen := result.entries[number])],
  )


def _router(router: str, path: epath.Path, models: Sequence[str]) -> tuple[RouterFile, Beginning]:
  """Routing policy beside a policy, and its choice of the model that a prompt begins at."""
  file = files.absolute(router)
  if file.parent != path.parent:
    raise ValueError(
      f'ROUTER={router} must lie beside POLICY, in {path.parent}, with the router that it names.'
    )
  choose = prompt_routing.open_choice(file)

  def begins(prompts: Sequence[str], counts: TokenCounts) -> Sequence[str]:
    chosen = choose(prompts, counts)
    if unknown := sorted({name for name in chosen if name} - set(models)):
      raise ValueError(
        f'ROUTER={router} chooses {", ".join(unknown)}, and the chain has {", ".join(models)}: fit '
        'it on models of these names.'
      )
    return chosen

  return RouterFile(file.name, hashlib.sha256(file.read_bytes()).hexdigest()), begins


def _check(
  path: epath.Path,
  subsets: Sequence[Judged] | Sequence[JudgedRows],
  demands: Demands,
  draws: int,
  check: Callable[..., tuple[Sequence[Risk | RuleRisk], dict[str, Simulation]]],
) -> None:
  """Prints the check of each subset, and draws it to POLICY.check.png and .svg."""
  for rows in subsets:
    risks, methods = check(rows, demands, draws=draws, seed=0)
    promises.show_check(rows.task, risks, methods)
    figure = promises.draw_check(risks, methods)
    task = '' if len(subsets) == 1 else f'.{files.component(rows.task, "a task")}'
    for image_format in figures.FORMATS:
      image = path.parent / f'{path.stem}{task}.check.{image_format}'
      files.write(image, figures.encode(figure, image_format))


def _data(split: str, models: Mapping[str, Sequence[Predictions]]) -> dict[str, Any]:
  names = [*models]
  return {
    'split': split,
    'tasks': {
      own[0].task: {
        'rows': len(own[0].ids),
        **{name: policies.fingerprint(each) for name, each in zip(names, own, strict=True)},
      }
      for own in zip(*models.values(), strict=True)
    },
  }


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.calibrate')
