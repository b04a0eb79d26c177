import subprocess
import sys
import types

import pytest

from cascades.tasks import __main__ as command
from cascades.tasks import records, vocabularies


@pytest.fixture
def lines(tmp_path):
  path = tmp_path / 'mine.jsonl'
  path.write_text(
    '{"inputs": "a b", "targets": ["x", "y"], "options": ["y", "x"]}\n'
    '{"inputs": "c", "targets": "z"}\n'
  )
  return path


def run(capsys, *arguments):
  code = command.main([str(argument) for argument in arguments])
  captured = capsys.readouterr()
  return code, captured.out, captured.err


def test_list_names_tasks_splits_and_metrics(capsys):
  code, out, _ = run(capsys, 'list')
  assert code == 0
  for part in ('cmudict_g2p', 'superglue_boolq', 'phoneme_error_rate', 'splits train, validation'):
    assert part in out


def test_show_prints_text_and_tokens(capsys):
  code, out, _ = run(capsys, 'show', 'cmudict_g2p', '-n', 2)
  assert code == 0
  assert out.count('id       ') == 2
  assert 'inputs   "\' b o u t"  5 tokens [3 7 20 26 25]' in out
  assert "answer   'B AW1 T'  3 tokens" in out


def test_show_reads_a_users_file(capsys, lines):
  code, out, _ = run(capsys, 'show', lines)
  assert code == 0
  assert 'id       mine/train/1' in out
  assert "answer   'x'" in out
  assert "answer   'y'" in out
  assert "option   'y'  1 tokens [124]" in out


def test_show_takes_the_keys_of_a_users_file(capsys, tmp_path):
  path = tmp_path / 'other.jsonl'
  path.write_text('{"q": "why", "a": "so"}\n')
  code, out, _ = run(capsys, 'show', path, '--inputs_key', 'q', '--targets_key', 'a')
  assert code == 0
  assert "inputs   'why'" in out


def test_show_escapes_control_characters(capsys, tmp_path):
  path = tmp_path / 'odd.tsv'
  path.write_bytes(b'\x1b[31mred\tdone\n')
  _, out, _ = run(capsys, 'show', path)
  assert '\x1b' not in out
  assert "'\\x1b[31mred'" in out


def test_show_can_use_another_vocabulary_and_split(capsys, hand_written, tmp_path):
  model = tmp_path / 'tiny.model'
  places = ('--data_dir', hand_written)
  run(
    capsys,
    'train_vocabulary',
    '--task',
    'superglue_boolq',
    '--size',
    400,
    '--output',
    model,
    *places,
  )
  code, out, _ = run(
    capsys, 'show', 'superglue_boolq', '--split', 'test', '--vocabulary', model, *places
  )
  assert code == 0
  assert 'id       boolq/test/0' in out
  assert 'answer' not in out


def test_materialize_writes_every_split(capsys, hand_written, tmp_path):
  code, out, _ = run(
    capsys, 'materialize', 'superglue_rte', '--data_dir', hand_written, '--output', tmp_path
  )
  assert code == 0
  assert [line.split(' rows')[0] for line in out.strip().split('\n')] == [
    'superglue_rte train: 8', 'superglue_rte validation: 4', 'superglue_rte test: 4',
  ]  # fmt: skip
  directory = out.strip().split('\n')[0].rpartition(' in ')[2]
  assert len(records.Records(directory)) == 8


def test_materialize_can_write_one_split(capsys, lines, tmp_path):
  code, out, _ = run(capsys, 'materialize', lines, '--split', 'train', '--output', tmp_path / 'out')
  assert code == 0
  assert 'mine train: 2 rows, at most 3 + 1 tokens' in out


def test_train_vocabulary_learns_from_inputs_and_answers(capsys, tmp_path):
  path, model = tmp_path / 'mine.tsv', tmp_path / 'mine.model'
  path.write_text('one input\tone answer\n' * 20)
  code, out, _ = run(
    capsys, 'train_vocabulary', '--task', path, '--size', 278, '--output', model,
    '--model_type', 'bpe',
  )  # fmt: skip
  assert code == 0
  assert '378 ids, 100 of them extra ids' in out
  assert len(vocabularies.sentencepiece(model).encode('answer')) < len('answer')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['show', 'cmudit'], 'Did you mean cmudict_g2p?'),
    (['show', 'nothing.jsonl'], 'There is no file nothing.jsonl'),
    (['show', 'cmudict_g2p', '--split', 'dev'], 'its splits are train, validation, test'),
    (['show', 'cmudict_g2p', '--vocabulary', 'none.model'], 'No SentencePiece model at none.model'),
    (['show', 'cmudict_g2p', '--import', 'no_such_module'], 'no_such_module'),
  ],
)
def test_an_error_is_one_sentence_and_a_non_zero_exit(capsys, arguments, message):
  code, out, err = run(capsys, *arguments)
  assert code == 1
  assert not out
  assert err.startswith('Error: ')
  assert message in err
  assert 'Traceback' not in err


def test_an_import_makes_a_users_tasks_known(capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'their_tasks', types.ModuleType('their_tasks'))
  code, _, err = run(capsys, 'show', 'cmudict_g2p', '-n', 0, '--import', 'their_tasks')
  assert (code, err) == (0, '')


def test_help_says_what_each_command_does(capsys):
  for arguments in (['--help'], ['show', '--help']):
    with pytest.raises(SystemExit) as exit_:
      command.main(arguments)
    assert exit_.value.code == 0
  out = capsys.readouterr().out
  for part in ('train_vocabulary', 'materialize', 'TASK is a name', '--allow_download'):
    assert part in out


@pytest.mark.parametrize('arguments', [['list'], ['show', 'cmudict_g2p', '-n', '1']])
def test_looking_at_tasks_imports_neither_tensorflow_nor_jax(arguments):
  code = f"""
import sys
from cascades.tasks import __main__ as command
assert command.main({arguments!r}) == 0
assert not {{'tensorflow', 'jax', 'seqio', 'grain'}} & set(sys.modules)
"""
  subprocess.run([sys.executable, '-c', code], capture_output=True, check=True)


def test_the_module_runs_as_a_program():
  out = subprocess.run(
    [sys.executable, '-m', 'cascades.tasks', 'list'], capture_output=True, text=True, check=True
  )
  assert out.stdout.startswith('cmudict_g2p')
