from __future__ import annotations

import pytest

from cascades.checkpoints import store
from cascades.interop import formats
from tests.interop import twin_folders
from tests.interop.t5x_arrays import TINY, random_arrays, write_native, write_orbax


def test_each_format_is_known_by_its_files(tmp_path):
  twin_folders.twin(tmp_path / 'folder', 'llama')
  write_native(tmp_path / 'native' / 'checkpoint_5', random_arrays(TINY))
  write_orbax(tmp_path / 'orbax' / 'checkpoint_5', random_arrays(TINY))
  (tmp_path / 'model.gguf').write_bytes(b'GGUF')
  assert formats.recognize(tmp_path / 'folder') == 'huggingface'
  assert formats.recognize(tmp_path / 'native' / 'checkpoint_5') == 't5x'
  assert formats.recognize(tmp_path / 'orbax' / 'checkpoint_5') == 't5x'
  assert formats.recognize(tmp_path / 'model.gguf') == 'gguf'


@pytest.mark.parametrize(
  ('files', 'given', 'message'),
  [
    ([], 'nowhere', r'there is no .*nowhere\. Give a folder of Hugging Face .* a \.gguf file, or'),
    (['empty/'], 'empty', r'empty is empty, and that is no checkpoint\. Give'),
    (['a/notes.txt', 'a/b.py'], 'a', r'holds b\.py, notes\.txt, and that is no checkpoint'),
    (['model.bin'], 'model.bin', r'is a pickle, which runs code .* not read here'),
    (['model.pt'], 'model.pt', r'is a pickle'),
    (['a/model.safetensors'], 'a/model.safetensors', r'one file of a model: give its folder'),
    (['weights.npz'], 'weights.npz', r'is a file of an unsupported format'),
    (['a/m.gguf'], 'a', r'a is no checkpoint; give one that it holds: m\.gguf'),
    (['a/checkpoint_5/checkpoint'], 'a', r'give one that it holds: checkpoint_5'),
    (['run/model.json', 'run/checkpoint_5/state/x'], 'run', r'is a run directory already'),
    (
      ['run/model.json', 'run/checkpoint_5/state/x'],
      'run/checkpoint_5',
      r'INITIAL_CHECKPOINT_PATH',
    ),
  ],
)
def test_what_is_no_checkpoint_of_others_says_what_to_give(files, given, message, tmp_path):
  for name in files:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if name.endswith('/') else path.write_bytes(b'')
  with pytest.raises(store.CheckpointError, match=message):
    formats.recognize(tmp_path / given)


def test_the_name_of_a_hub_says_how_to_get_the_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(store.CheckpointError, match='there is no folder') as caught:
    formats.recognize('google/flan-t5-small')
  assert (
    'hf download google/flan-t5-small --local-dir downloads/flan-t5-small\n'
    'makes a folder, which is then the SOURCE: --gin.SOURCE=downloads/flan-t5-small'
  ) in str(caught.value)
  for path in ('google', './google/flan', '/google/flan', 'a/b/c'):
    with pytest.raises(store.CheckpointError, match=r'there is no /'):
      formats.recognize(path)
