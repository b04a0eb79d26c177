"""Rank documents for queries by dot products, MaxSim, LITE or a cross-encoder, and by cascades.

    python -m cascades.rank --gin_file=runs/rank.gin --gin.MODE=train --gin.MODEL_DIR=runs/lite
      --gin.DOCUMENTS=corpus.jsonl --gin.QUERIES=queries.jsonl --gin.QRELS=qrels/train.tsv
    python -m cascades.rank ... --gin.MODE=encode --gin.STORE=runs/lite/store
    python -m cascades.rank ... --gin.MODE=rank --gin.STORE=runs/lite/store --gin.RUN=lite.run
    python -m cascades.rank ... --gin.MODE=evaluate --gin.RUNS="{'lite': 'lite.run'}"
      --gin.QRELS=qrels/test.tsv --gin.OUTPUT_DIR=runs/ranking
    python -m cascades.rank ... --gin.MODE=cascade --gin.RUNS="{'bm25': ..., 'lite': ...}"

`train` writes a ranker to MODEL_DIR, from the scores of a TEACHER where the LOSS reads them.
`encode` writes the vectors of DOCUMENTS to a store. `rank` writes scores of CANDIDATES, or of all
documents, to the TREC file RUN, and what they cost to RUN.json: a cross-encoder's run is a TEACHER.
`evaluate` measures RUNS. `cascade` orders by the first of RUNS, reorders the best by the next, and
writes quality against milliseconds and bytes. Killed runs of `train` and `encode` resume.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from etils import epath

from cascades.evaluation import ranked, ranking_cascade
from cascades.inference import document_store, ranked_runs
from cascades.inference.ranker import RANKER, TOKENIZER, open_ranker
from cascades.models import rankers
from cascades.models.bert import BertConfig
from cascades.models.rankers import RankerConfig
from cascades.predictions import judgments
from cascades.reporting import figures, ranking_figures
from cascades.runtime import files, locking, ranges, stopping
from cascades.training import ranker, ranker_start
from cascades.training.ranker import RankingStep
from cascades.training.ranking_data import RankingData
from cascades.training.setup import Schedule

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RankingTexts:
  """Files of texts and judgments; see `predictions.judgments`.

  Attributes:
    documents: Texts of documents by id.
    queries: Texts of queries by id.
    qrels: Grades.
    candidates: Run whose documents are ranked, or are negatives in training; None ranks all.
    teacher: Run of a teacher's scores, for training.
    with_judged: Ranks the judged documents besides the candidates, for a teacher.
  """

  documents: str | None = None
  queries: str | None = None
  qrels: str | None = None
  candidates: str | None = None
  teacher: str | None = None
  with_judged: bool = False

  def read(self, name: str) -> dict[str, Any]:
    """Content of the file of an attribute.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file cannot be read, or none is given.
    """
    path = getattr(self, name)
    if path is None:
      raise ValueError(f'{name.upper()} is not given, and this MODE reads it: name a file.')
    if name == 'qrels':
      return judgments.read_qrels(path)
    if name in ('candidates', 'teacher'):
      return judgments.read_run(path)
    return judgments.texts(path, name.upper())


@dataclasses.dataclass(frozen=True)
class RankerOptions:
  """The ranker to train.

  Attributes:
    encoder: Folder of the encoder to start from; None for a tiny one with random weights.
    layers: First layers of the encoder to take; None for all.
    config: Maps the configuration of the encoder to that of the ranker.
  """

  encoder: str | None = None
  layers: int | None = None
  config: Callable[[BertConfig], RankerConfig] = RankerConfig


@dataclasses.dataclass(frozen=True)
class RankOptions:
  """Options of the modes after training.

  Attributes:
    store: Folder of encoded documents.
    dtype: Type of their numbers, in `document_store.DTYPES`.
    run: File of scores to write.
    depth: Documents of a query that are written, and of candidates that are read; None for all.
    batch_size: Texts that are encoded together.
    runs: Runs by name; of a cascade, the cheapest first.
    output_dir: Folder of results.
    measures: Names of ir-measures; a cascade is measured by the first.
    depths: Depths of the last scorer of a cascade.
    middle: Depths of the scorer before it, of three.
  """

  store: str | None = None
  dtype: str = 'float16'
  run: str | None = None
  depth: int | None = 100
  batch_size: int = 16
  runs: Mapping[str, str] = dataclasses.field(default_factory=dict)
  output_dir: str | None = None
  measures: Sequence[str] = ranked.MEASURES
  depths: Sequence[int] = (0, 1, 2, 3, 5, 10, 20, 50, 100)
  middle: Sequence[int] = (20, 50, 100)

  def __post_init__(self) -> None:
    sizes = {'DEPTH': self.depth, 'ENCODE_BATCH': self.batch_size}
    ranges.check(sizes, least=1, integer=True)
    for name, depths in (('DEPTHS', self.depths), ('MIDDLE', self.middle)):
      ranges.check({f'{name}[{i}]': n for i, n in enumerate(depths)}, least=0, integer=True)
      if not depths or [*depths] != sorted({*depths}):
        raise ValueError(f'{name}={list(depths)}; expected ascending depths, one or more.')

  def required(self, name: str) -> epath.Path:
    """Path of an attribute. Raises ValueError if it is not given."""
    if getattr(self, name) is None:
      raise ValueError(f'{name.upper()} is not given, and this MODE needs it.')
    return files.absolute(getattr(self, name))


def rank(
  mode: Literal['train', 'encode', 'rank', 'evaluate', 'cascade'],
  model_dir: str | None,
  texts: RankingTexts,
  model: RankerOptions,
  step: RankingStep,
  schedule: Schedule,
  options: RankOptions,
  *,
  overwrite: bool = False,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Trains a ranker, encodes documents, ranks them, or measures what was ranked.

  Args:
    mode: The task.
    model_dir: Run directory of the ranker.
    texts: Texts and judgments.
    model: The ranker to train.
    step: Settings of a training step.
    schedule: Length of training.
    options: Options of the other modes.
    overwrite: Replace another output instead of refusing.
    provenance: Function that says how the result was made.

  Raises:
    CheckpointError: MODEL_DIR is no ranker, or belongs to another one.
    FileExistsError: The output exists.
    FileNotFoundError: A file is missing.
    ValueError: A file cannot be read, or files do not fit together.
  """
  if mode in ('evaluate', 'cascade'):
    task = _evaluate if mode == 'evaluate' else _cascade
    task(texts, options, overwrite, dict(provenance()))
    return
  if mode not in ('train', 'encode', 'rank'):
    raise ValueError(f'MODE={mode!r:.80} is none of train, encode, rank, evaluate, cascade.')
  if model_dir is None:
    raise ValueError(f'MODEL_DIR is not given, and MODE={mode} needs the folder of a ranker.')
  if mode == 'train':
    _train(files.absolute(model_dir), texts, model, step, schedule)
  elif mode == 'encode':
    _encode(model_dir, texts, options, overwrite)
  else:
    _rank(model_dir, texts, options, overwrite)


def _train(
  directory: epath.Path, texts: RankingTexts, model: RankerOptions, step: RankingStep,
  schedule: Schedule,
) -> None:  # fmt: skip
  optional = {n: texts.read(n) for n in ('candidates', 'teacher') if getattr(texts, n)}
  data = RankingData(
    texts.read('documents'), texts.read('queries'), texts.read('qrels'), **optional
  )
  with locking.held(directory), stopping.asked() as asked_to_stop:
    tokenizer = directory / TOKENIZER
    start = (
      ranker_start.pretrained(model.encoder, tokenizer, layers=model.layers)
      if model.encoder
      else ranker_start.tiny(data.documents.values(), tokenizer, layers=model.layers)
    )
    config = model.config(start.config)
    settings = {
      **{f'texts {name}': value for name, value in dataclasses.asdict(texts).items()},
      'encoder': model.encoder, 'batch_size': step.batch_size, 'negatives': step.negatives,
      'frozen': step.frozen, 'seed': step.seed,
    }  # fmt: skip
    ranker.run(
      directory, config, start.vocabulary, data, step, schedule, encoder=start.weights,
      description={RANKER: rankers.describe(config)}, settings=settings,
      asked_to_stop=asked_to_stop,
    )  # fmt: skip


def _encode(model_dir: str, texts: RankingTexts, options: RankOptions, overwrite: bool) -> None:
  folder = options.required('store')
  model = open_ranker(model_dir, batch_size=options.batch_size)
  if model.config.scorer == 'cross':
    raise ValueError(
      f'MODEL_DIR={model_dir} is a cross-encoder, which reads pairs: it needs no STORE. Rank with '
      'MODE=rank and DOCUMENTS.'
    )
  documents = texts.read('documents')
  with locking.held(folder):
    document_store.write(
      folder, documents, model.encode_documents, ranker=model.identity, dtype=options.dtype,
      overwrite=overwrite,
    )  # fmt: skip


def _rank(model_dir: str, texts: RankingTexts, options: RankOptions, overwrite: bool) -> None:
  path = options.required('run')
  if path.exists() and not overwrite:
    raise FileExistsError(f'RUN={path} exists: choose another, or replace it, OVERWRITE=True.')
  model = open_ranker(model_dir, batch_size=options.batch_size)
  queries = texts.read('queries')
  qrels = texts.read('qrels') if texts.qrels else None
  candidates = _candidates(texts, options, qrels)
  asked = {q: text for q, text in queries.items() if qrels is None or q in qrels}
  if candidates is not None:
    asked = {q: text for q, text in asked.items() if candidates.get(q)}
  if not asked:
    raise ValueError('no query has a candidate: QUERIES, QRELS and CANDIDATES share no id.')
  if model.config.scorer == 'cross':
    if candidates is None:
      raise ValueError('a cross-encoder ranks CANDIDATES: give the run of a cheaper ranker.')
    result = ranked_runs.by_pairs(model, asked, texts.read('documents'), candidates)
  else:
    store = document_store.open_store(options.required('store'), ranker=model.identity)
    result = ranked_runs.by_vectors(model, asked, store, candidates, depth=options.depth)
  judgments.write_run(path, result.ranked)
  files.write(ranked_runs.costs_path(path), json.dumps(result.costs._asdict(), indent=1) + '\n')
  log.info('%s: %d queries; %s', path, len(asked), result.costs.describe())


def _candidates(
  texts: RankingTexts, options: RankOptions, qrels: judgments.Qrels | None
) -> dict[str, list[str]] | None:
  """The best documents of each query in the run of candidates; None for all documents."""
  if texts.candidates is None:
    return None
  best = {q: own[: options.depth] for q, own in ranked.ranked(texts.read('candidates')).items()}
  if texts.with_judged:
    if qrels is None:
      raise ValueError('WITH_JUDGED=True adds the documents of QRELS: give them.')
    best = {q: [*dict.fromkeys([*best.get(q, []), *own])] for q, own in qrels.items()}
  return best


def _evaluate(
  texts: RankingTexts, options: RankOptions, overwrite: bool, provenance: Mapping[str, str]
) -> None:
  if not options.runs:
    raise ValueError("RUNS is empty: give runs by name, as {'lite': 'lite.run'}.")
  path = _output(options, 'ranking.json', overwrite)
  qrels = texts.read('qrels')
  values = {
    name: ranked.per_query(qrels, ranked.ranked(judgments.read_run(run)), options.measures)
    for name, run in options.runs.items()
  }
  means = {
    name: {measure: ranked.mean(v) for measure, v in own.items()} for name, own in values.items()
  }
  for name, own in means.items():
    log.info('%s: %s', name, ', '.join(f'{m} {value:.4f}' for m, value in own.items()))
  contents = {'means': means, 'queries': values, 'provenance': provenance}
  files.write(path, json.dumps(contents, indent=1) + '\n')
  log.info('%s: %d runs', path, len(means))


def _cascade(
  texts: RankingTexts, options: RankOptions, overwrite: bool, provenance: Mapping[str, str]
) -> None:
  if not 2 <= len(options.runs) <= 3:
    raise ValueError(
      f'RUNS has {len(options.runs)} runs; a ranking cascade has two or three, the cheapest first.'
    )
  path = _output(options, 'cascade.json', overwrite)
  levels = [
    ranking_cascade.ScoredLevel(name, judgments.read_run(run), ranked_runs.read_costs(run))
    for name, run in options.runs.items()
  ]
  panels = ranking_cascade.curves(
    levels, texts.read('qrels'), options.measures[0], depths=options.depths, middle=options.middle
  )
  for name, curve in panels['milliseconds'].items():
    for point in ranking_cascade.points(curve):
      log.info('%s, %s', name, point)
  figure = ranking_figures.draw(panels, options.measures[0])
  for image_format in figures.FORMATS:
    image = figures.encode(figure, image_format)
    files.write(path.parent / f'cascade.{image_format}', image)
  contents = {
    'measure': options.measures[0],
    'levels': {level.name: level.costs._asdict() for level in levels},
    'curves': ranking_cascade.as_json(panels),
    'provenance': provenance,
  }
  files.write(path, json.dumps(contents, indent=1) + '\n')
  log.info('%s: curves, with cascade.png and cascade.svg beside it', path)


def _output(options: RankOptions, name: str, overwrite: bool) -> epath.Path:
  path = options.required('output_dir') / name
  if path.exists() and not overwrite:
    raise FileExistsError(f'{path} exists: choose another OUTPUT_DIR, or OVERWRITE=True.')
  return path


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.rank')
