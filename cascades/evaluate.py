"""Compare cascades from their tables of predictions.

    python -m cascades.evaluate --gin_file=runs/evaluate.gin
      --gin.SMALL="{'xent': 'runs/xent/predictions', 'cat': 'runs/cat/predictions'}"
      --gin.LARGE="'runs/large/predictions'" --gin.EVAL_OUTPUT_DIR="'runs/evaluation'"

Writes report.html, curves.json, summary.csv, config.gin and figures/ to the output directory, and
prints the main tables. With POLICY, promises.json says what the policy does on these rows. No model
runs, so another deferral rule takes seconds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from cascades import deferral
from cascades.evaluation import chain_policy, chain_realized, policy_outcome, realized
from cascades.evaluation import fitted as fitted_files
from cascades.evaluation import learned as learning
from cascades.evaluation import policy as policies
from cascades.evaluation.chain_comparison import compare_chains
from cascades.evaluation.chain_policy import ChainPolicy
from cascades.evaluation.chains import Chains
from cascades.evaluation.compare import compare
from cascades.evaluation.comparison import Comparison, Promised, Settings
from cascades.evaluation.learned import Learned
from cascades.evaluation.quantities import LARGE
from cascades.evaluation.realized import Outcome
from cascades.evaluation.tables import Tables
from cascades.inference import prompt_routing
from cascades.reporting import escaping, outputs, promises, terminal
from cascades.reporting.report import Report
from cascades.runtime import files, locking
from cascades.types import Decider, DeferralRule, Metric, Predictions, Score


def evaluate(
  tables: Tables,
  output_dir: str,
  *,
  rules: Mapping[str, DeferralRule] | None = None,
  scores: Mapping[str, Score | Decider] | None = None,
  learned: Learned | None = None,
  metric: Metric | str | None = None,
  settings: Settings | None = None,
  chains: Chains | None = None,
  report: Report | None = None,
  policy: str | None = None,
  overwrite: bool = False,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> Comparison | None:
  """Joins each small model's tables with the large one's, compares, and writes a report.

  Args:
    tables: Tables of predictions of the small models and of the large one.
    output_dir: Directory to write to, local or remote.
    rules: Deferral rules by name, in addition to those of the settings.
    scores: Scores by name that read whole tables, in addition to the rules. The report leads with
      the first rule, or the first score if there is no rule. A decider that reads no answer is a
      router, which is compared as a control of chains.
    learned: Deciders to fit on another split; None for none. They are stored in the folder
      learned/ of the report.
    metric: Metric, or its name; None for the first metric of each table. Answers are judged from
      their texts where the tables do not hold its statistics.
    settings: Settings of the comparison; None for the defaults.
    chains: Chains of several models, and axes of cost; None for each small model and the large
      one at constant FLOPs per token.
    report: Options of the report; None for the defaults.
    policy: File of a policy. The promises of one of two models are compared with these rows in
      promises.json; rows without targets are then allowed, and give no report. Quality and cost of
      one of a chain or a router are written to policy_outcome.json, and the promises of a chain
      are compared too.
    overwrite: Replace a report of other tables in `output_dir` instead of refusing.
    provenance: Function that says how the comparison was made, called after it.

  Returns:
    The comparison that the report shows; None for rows without targets.

  Raises:
    FileNotFoundError: A table is missing or incomplete.
    FileExistsError: `output_dir` holds a report of other tables.
    BlockingIOError: Another process writes to `output_dir`.
    ValueError: The tables do not fit together, or cannot be compared as asked for.
  """
  settings, learned = settings or Settings(), learned or Learned()
  small, large = dataclasses.replace(
    tables, require_targets=policy is None, embeddings=learned.embeddings
  ).read()
  labels = not any(table.manifest.get('unlabelled') for table in large)
  chains = chains or Chains()
  fit = _fit_tables(tables, chains, learned)
  unseen: list[Mapping[str, Sequence[Predictions]]] = [small]
  if fit is not None and chains.fit_split != learned.split:
    unseen.append(fit)
  fitted = learned.fit(tables, unseen, metric)
  deciders = _deciders(settings.standard_rules, rules or {}, scores or {}, small)
  deciders |= learning.deciders(
    fitted, {name: [*own, *(fit or {}).get(name, [])] for name, own in small.items()}
  )
  if [*deciders] == ['random']:
    raise ValueError(
      'Rows of the small models have no log-probabilities of tokens, alternatives or confidence, '
      'so that no standard score can order them: store one of these, or give a score.'
    )
  directory = files.absolute(output_dir)
  with locking.held(directory):
    if not overwrite:
      outputs.check(directory, {**small, LARGE.name: large})
    promised = None
    if policy is not None:
      if isinstance(chain_policy.read_any(files.absolute(policy)), policies.Policy):
        promised = _compare_with_promises(directory, policy, small, large, labels=labels)
      else:
        _apply_policy(directory, policy, _models(small, large), chains, metric, labels=labels)
    if not labels:
      return None
    comparison = compare(
      small,
      large,
      scores={name: d.score for name, d in deciders.items() if not d.before_answer},
      settings=settings,
      metric=metric,
      recipes=tables.recipes,
    )
    comparison = comparison._replace(
      chains=compare_chains(
        _models(small, large),
        fit,
        deciders=_deciding(deciders, chains, comparison.scores[:1]),
        chains=chains,
        settings=comparison.settings,
        metric=metric,
        learned=fitted,
      ),
      promised=promised,
    )
    outputs.write(directory, comparison, report or Report(), provenance())
    for by_model in fitted.values():
      for model, decider in by_model.items():
        fitted_files.write(directory / 'learned' / files.component(model, 'a model'), decider)
  terminal.show(comparison)
  print('Report:', escaping.visible(str(directory / 'report.html')))
  return comparison


def _fit_tables(
  tables: Tables, chains: Chains, learned: Learned
) -> dict[str, Sequence[Predictions]] | None:
  """Tables of the split that chains are fitted on, by model; None if there is none."""
  if chains.fit_split is None:
    return None
  others = dataclasses.replace(tables, split=chains.fit_split, embeddings=learned.embeddings)
  return _models(*others.read())


def _compare_with_promises(
  directory: epath.Path,
  path: str,
  small: Mapping[str, Sequence[Predictions]],
  large: Sequence[Predictions],
  *,
  labels: bool,
) -> Promised | None:
  """Prints and writes what a policy promised, and what it does on these rows.

  Returns:
    The promises of its only threshold; None if each task has its own.
  """
  policy = policies.read(files.absolute(path))
  name = policy.models['small']['name']
  name = name if name in small else next(iter(small))
  outcomes = realized.outcomes(policy, small[name], large, labels=labels)
  _write_outcomes(directory, policy, outcomes)
  if len(policy.thresholds) > 1:
    return None
  (entry,) = policy.thresholds
  return Promised(name, policy.decider.name, entry.value, promises.sentence(policy, entry))


def _write_outcomes(
  directory: epath.Path, policy: policies.Policy | ChainPolicy, outcomes: Sequence[Outcome]
) -> None:
  files.write(directory / 'promises.json', json.dumps(promises.as_json(outcomes), indent=2) + '\n')
  promises.show_outcomes(policy, outcomes)


def _apply_policy(
  directory: epath.Path,
  path: str,
  tables: Mapping[str, Sequence[Predictions]],
  chains: Chains,
  metric: Metric | str | None,
  *,
  labels: bool,
) -> None:
  """Prints and writes quality and cost of a policy of any number of models, and what holds."""
  file = files.absolute(path)
  stored = chain_policy.read_any(file)
  if isinstance(stored, ChainPolicy) and stored.expected:
    form = chain_policy.form(stored, file)
    given = policy_outcome.names_of(form, tables)
    outcomes = chain_realized.outcomes(
      stored, {name: tables[own] for name, own in given.items()},
      prompt_routing.open_choice(form.routing) if form.routing else None, labels=labels,
    )  # fmt: skip
    _write_outcomes(directory, stored, outcomes)
  elif not labels:
    raise ValueError(
      f'POLICY={path} promises nothing, and the rows have no targets: take a split that has '
      'targets.'
    )
  if not labels:
    return
  outcome = policy_outcome.of_file(
    file, tables, prompt_routing.open_choice, axis=chains.axes[0], prices=chains.prices,
    metric=metric,
  )  # fmt: skip
  files.write(directory / 'policy_outcome.json', json.dumps(outcome._asdict(), indent=2) + '\n')
  promises.show_policy_outcome(file.name, outcome)


def _deciders(
  standard: Mapping[str, DeferralRule],
  rules: Mapping[str, DeferralRule],
  scores: Mapping[str, Score | Decider],
  small: Mapping[str, Sequence[Predictions]],
) -> dict[str, Decider]:
  """Standard rules that the tables allow, and the user's own rules and scores."""
  own = {name: deferral.as_score(rule) for name, rule in rules.items()} | dict(scores)
  return _readable(standard, small) | {
    name: score if isinstance(score, Decider) else Decider(name, score, ['predictions'])
    for name, score in own.items()
  }


def _readable(
  rules: Mapping[str, DeferralRule], small: Mapping[str, Sequence[Predictions]]
) -> dict[str, Decider]:
  """Standard rules, and scores of other columns, of what all small models' tables hold.

  Random scores, a control, come last, so that reports do not lead with them.
  """
  standard = {
    name: Decider(name, deferral.as_score(rule), ['ids' if name == 'random' else 'token_logprobs'])
    for name, rule in rules.items()
  } | {name: deferral.DECIDERS[name] for name in ('confidence', 'entropy', 'margin')}
  tables = [table for own in small.values() for table in own]
  return {
    name: standard[name]
    for name in sorted(standard, key=lambda name: name == 'random')
    if not any(deferral.missing(standard[name].reads, table) for table in tables)
  }


def _models(
  small: Mapping[str, Sequence[Predictions]], large: Sequence[Predictions]
) -> dict[str, Sequence[Predictions]]:
  """Tables by model, the large one last; it is called 'large' unless a small one is."""
  return {**small, 'large' if 'large' not in small else LARGE.name: large}


def _deciding(
  deciders: Mapping[str, Decider], chains: Chains, default: Sequence[str]
) -> list[Decider]:
  """Deciders of chains, by default of these names, and all routers."""
  scores = chains.scores or default
  for macro, given in (('CHAIN_SCORES', scores), ('DECISIONS', chains.decisions)):
    if unknown := sorted(set(given) - set(deciders)):
      raise ValueError(
        f'{macro} names {", ".join(map(repr, unknown))}, and the scores are '
        f'{", ".join(map(repr, deciders))}.'
      )
  return [d for name, d in deciders.items() if d.before_answer or name in scores]


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.evaluate')
