"""Answer prompts with a cascade of two Hugging Face folders, without converting them.

    python examples/two_folders.py [SMALL_FOLDER LARGE_FOLDER]

The small model answers every prompt. The prompts whose answers have the lowest mean log-probability
are deferred to the large model. Both may be T5s or decoders, with different tokenizers. Without
arguments two tiny random models are written to a temporary folder; their answers are noise.
"""

import pathlib
import sys
import tempfile

import jax
import numpy as np
from flax import nnx

from cascades import decoding, deferral
from cascades.interop import companions, families, huggingface, tensor_tables
from cascades.interop.pretrained import open_pretrained
from cascades.models import configs, decoder
from cascades.models.abstract import abstract_model, init_params
from cascades.runtime import partitioning
from cascades.tokenizers.train_sentencepiece import train_sentencepiece
from cascades.types import Prompt, Vocabulary

PROMPTS = (
  'The capital of France is',
  'Seven times eight is',
  'The opposite of cold is',
  'A synonym of quick is',
)
DEFERRED = 0.5  # share of the prompts
MAX_TOKENS = 12  # of an answer


def answer(folder: pathlib.Path, prompts: list[str]) -> tuple[list[str], np.ndarray]:
  """Answers of the model in a folder, and their deferral scores: higher means less certain."""
  pretrained = open_pretrained(folder)
  vocabulary = pretrained.vocabulary
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    graph, abstract = abstract_model(pretrained.config)
    params = pretrained.tensors.load(abstract)
    ids = [vocabulary.encode(prompt) for prompt in prompts]
    if pretrained.config.architecture == 'encoder_decoder':
      ids = [[*prompt, vocabulary.eos_id] for prompt in ids]
    elif vocabulary.bos_id is not None:
      ids = [[vocabulary.bos_id, *prompt] for prompt in ids]
    lengths = np.array([len(prompt) for prompt in ids])
    tokens = np.array([[*prompt, *[0] * (lengths.max() - len(prompt))] for prompt in ids])

    @jax.jit
    def generate(params, prompt):
      model = nnx.merge(graph, params)
      return decoding.generate(model, prompt, max_len=MAX_TOKENS, eos_id=vocabulary.eos_ids)

    generation = jax.device_get(generate(params, Prompt(tokens, lengths)))
  texts = [
    vocabulary.decode(row[mask])
    for row, mask in zip(generation.tokens, generation.mask, strict=True)
  ]
  return texts, deferral.average(generation.logprobs, generation.mask)


def cascade(
  small: pathlib.Path, large: pathlib.Path, prompts: list[str]
) -> tuple[list[str], np.ndarray]:
  """The cascade's answers, and for each prompt whether it was deferred."""
  answers, scores = answer(small, prompts)
  deferred = np.zeros(len(prompts), bool)
  deferred[np.argsort(-scores, kind='stable')[: round(DEFERRED * len(prompts))]] = True
  rows = np.flatnonzero(deferred)
  for row, text in zip(rows, answer(large, [prompts[row] for row in rows])[0], strict=True):
    answers[row] = text
  return answers, deferred


def write_random(folder: pathlib.Path, vocabulary: Vocabulary, *, width: int, seed: int) -> None:
  """Writes a random Llama and its tokenizer, as `save_pretrained` of transformers does."""
  config = decoder.DecoderConfig(
    vocab_size=vocabulary.size,
    emb_dim=width,
    num_heads=2,
    num_kv_heads=2,
    num_layers=2,
    head_dim=width // 2,
    mlp_dim=2 * width,
  )
  description = configs.describe(config)
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    params = init_params(config, seed, abstract_model(config)[1])
  tensors = tensor_tables.unload(families.table(description), params)
  options, files = companions.for_export(description, vocabulary, None)
  huggingface.write_folder(folder, options, tensors, files)


def main(small: pathlib.Path, large: pathlib.Path) -> None:
  answers, deferred = cascade(small, large, [*PROMPTS])
  for prompt, text, is_deferred in zip(PROMPTS, answers, deferred, strict=True):
    print(f'[{"large" if is_deferred else "small"}] {prompt} {text!r}')
  print(f'{deferred.mean():.0%} of the prompts deferred')


if __name__ == '__main__':
  folders = [pathlib.Path(argument) for argument in sys.argv[1:]]
  if not folders:
    parent = pathlib.Path(tempfile.mkdtemp())
    folders = [parent / 'small', parent / 'large']
    vocabulary = train_sentencepiece(PROMPTS * 10, parent / 'tokenizer.model', size=288)
    write_random(folders[0], vocabulary, width=16, seed=0)
    write_random(folders[1], vocabulary, width=32, seed=1)
  main(*folders)
