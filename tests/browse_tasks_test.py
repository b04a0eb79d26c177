import functools
import subprocess
import sys
import types

import pytest

from cascades import browse_tasks as command
from cascades.data import records
from cascades.settings import reading
from cascades.tasks import catalog
from cascades.tokenizers import vocabularies


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


def test_list_names_tasks_with_suites_metrics_sizes_and_what_is_missing(capsys):
  code, out, _ = run(capsys, 'list')
  assert code == 0
  (line,) = (line for line in out.split('\n') if 'superglue_multirc' in line)
  for part in ('superglue', 'f1[True|False]', 'train 27,243', 'missing: MultiRC/train.jsonl'):
    assert part in line
  for part in ('wmt22_en_ja', 'flan_wmt14_enfr', 'c4_causal_lm', 'stream_isear', '188,371 in all'):
    assert part in out


def test_list_takes_names_of_tasks_suites_and_mixtures_and_parts_of_names(capsys):
  for names, tasks in (
    (['superglue_rte'], {'superglue_rte'}),
    (['streams'], {'stream_imdb', 'stream_hatespeech', 'stream_isear', 'stream_fever'}),
    (['fever', 'c4_causal_lm'], {'stream_fever', 'c4_causal_lm'}),
  ):
    _, out, _ = run(capsys, 'list', *names)
    listed = {line.split()[0] for line in out.split('\n') if line.strip()}
    assert listed & set(catalog.names()) == tasks
  _, out, _ = run(capsys, 'list', 'wmt22')
  assert 'wmt22_en_ja' in out
  assert 'superglue' not in out
  code, _, err = run(capsys, 'list', 'superglue_rtf')
  assert (code, 'Did you mean superglue_rte' in err) == (1, True)


def test_the_task_of_a_gin_file_is_shown_and_materialized(capsys, lines, tmp_path):
  file = tmp_path / 'task.gin'
  file.write_text(
    'from __gin__ import dynamic_registration\n'
    'from cascades.tasks import local\n'
    'TASK = @local.local_jsonl()\n'
    "TASK_FEATURE_LENGTHS = {'inputs': 3, 'targets': 16}\n"
    "local.local_jsonl.name = 'described'\n"
    f"local.local_jsonl.splits = {{'dev': {str(lines)!r}}}\n"
  )
  commands = functools.partial(command.main, read_task=reading.task_of)
  assert commands(['show', str(file)]) == 0
  out = capsys.readouterr().out
  assert 'described, split dev' in out
  assert '4 tokens, 3 kept' in out
  assert commands(['materialize', str(file), f'--output={tmp_path}']) == 0
  assert 'described dev: 2 rows' in capsys.readouterr().out
  lines.unlink()
  assert commands(['show', str(file)]) == 1
  assert capsys.readouterr().err.strip() == f'Error: There is no file {lines}.'
  file.write_text("MIXTURE_OR_TASK_NAME = 'superglue_rte'")
  assert commands(['show', str(file), '--sample', '-n1']) == 0
  assert 'rte hypothesis' in capsys.readouterr().out
  file.write_text('TASK = 3')
  assert commands(['show', str(file)]) == 1
  assert 'TASK of' in capsys.readouterr().err


def test_a_file_without_answers_is_shown(capsys, tmp_path):
  (tmp_path / 'asked.jsonl').write_text('{"inputs": "a"}\n')
  code, _, err = run(capsys, 'show', tmp_path / 'asked.jsonl')
  assert (code, 'set targets_key=None' in err) == (1, True)
  code, out, _ = run(capsys, 'show', tmp_path / 'asked.jsonl', '--targets_key=')
  assert (code, 'asked/train/1' in out) == (0, True)


def test_list_says_where_data_are(capsys, hand_written):
  _, out, _ = run(capsys, 'list', '--data_dir', hand_written)
  (line,) = (line for line in out.split('\n') if 'superglue_rte' in line)
  assert f'{hand_written}/RTE/train.jsonl' in line


def test_check_counts_rows_and_names_malformed_lines(capsys, tmp_path):
  (tmp_path / 'RTE').mkdir()
  row = '{"premise": "a", "hypothesis": "b", "label": "entailment", "idx": 0}'
  bad = row.replace('entailment', 'maybe')
  (tmp_path / 'RTE' / 'train.jsonl').write_text(f'{row}\n{bad}\n')
  code, out, _ = run(capsys, 'check', '--data_dir', tmp_path)
  assert code == 1
  assert 'malformed  superglue_rte train: 1 of 2,490 rows' in out
  assert 'train.jsonl, line 2' in out
  assert "the label 'maybe'" in out
  (tmp_path / 'RTE' / 'train.jsonl').write_text(f'{row}\n' * 3)
  code, out, _ = run(capsys, 'check', 'superglue_rte', '--data_dir', tmp_path)
  assert code == 0
  assert 'readable   superglue_rte train: 3 of 2,490 rows' in out
  assert 'no data    superglue_rte validation' in out


def test_a_mixture_is_shown_and_materialized_task_by_task(capsys, tmp_path):
  code, out, _ = run(capsys, 'show', 'wmt22', '--sample', '-n', 1)
  assert code == 0
  assert out.count('translate English to ') == 3
  code, out, _ = run(capsys, 'materialize', 'wmt22', '--sample', '--output', tmp_path)
  assert code == 0
  assert 'wmt22_ru_en test: 12 rows' in out


def test_show_counts_what_is_trimmed(capsys):
  _, out, _ = run(capsys, 'show', 'superglue_rte', '--sample', '-n', 1, '--inputs_length', 20)
  assert 'tokens, 20 kept' in out
  assert 'trimmed' in out
  assert 'published  {"premise"' in out


def test_what_tfds_has_no_builder_for_is_not_downloaded(capsys):
  code, _, err = run(capsys, 'download', 'wmt22_en_ja')
  assert code == 1
  assert 'TFDS has no builder for wmt22_translate/en-ja: put wmt22/en-ja/train.tsv' in err


def test_a_vocabulary_learns_from_several_tasks(capsys, tmp_path):
  model = tmp_path / 'wmt.model'
  code, _, _ = run(
    capsys, 'train_vocabulary', 'wmt22', 'superglue_cb', '--sample', '--size', 700,
    '--output', model,
  )  # fmt: skip
  assert code == 0
  text = 'Привет,  мир\n日本語 中文 \u2028'
  vocabulary = vocabularies.sentencepiece(model)
  assert vocabulary.decode(vocabulary.encode(text)) == text


def test_show_prints_text_and_tokens(capsys):
  code, out, _ = run(capsys, 'show', 'cmudict_g2p', '-n', 2)
  assert code == 0
  assert out.count('id         ') == 2
  assert "inputs     ' b o u t" in out
  assert '6 tokens, 6 kept  [3 7 20 26 25]' in out
  assert 'targets    B AW1 T' in out


def test_show_reads_a_users_file(capsys, lines):
  code, out, _ = run(capsys, 'show', lines)
  assert code == 0
  assert 'id         mine/train/1' in out
  for part in ('targets    x', 'or         y', 'option     y'):
    assert part in out


def test_show_takes_the_keys_of_a_users_file(capsys, tmp_path):
  path = tmp_path / 'other.jsonl'
  path.write_text('{"q": "why", "a": "so"}\n')
  code, out, _ = run(capsys, 'show', path, '--inputs_key', 'q', '--targets_key', 'a')
  assert code == 0
  assert 'inputs     why' in out


def test_show_escapes_control_characters(capsys, tmp_path):
  path = tmp_path / 'odd.tsv'
  path.write_bytes(b'\x1b[31mred\tdone\n')
  _, out, _ = run(capsys, 'show', path)
  assert '\x1b' not in out
  assert '\\x1b[31mred' in out


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
  assert 'id         boolq/test/0' in out
  assert 'or  ' not in out


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
    (['show', 'cmudict_g2p', '--vocabulary', 'none.model'], 'there is no vocabulary '),
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
  for part in ('train_vocabulary', 'materialize', 'TASK is the name', '--allow_download'):
    assert part in out


@pytest.mark.parametrize('arguments', [['list'], ['show', 'cmudict_g2p', '-n', '1']])
def test_looking_at_tasks_imports_neither_tensorflow_nor_jax(arguments):
  code = f"""
import sys
from cascades import browse_tasks as command
assert command.main({arguments!r}) == 0
assert not {{'tensorflow', 'jax', 'seqio', 'grain'}} & set(sys.modules)
"""
  subprocess.run([sys.executable, '-c', code], capture_output=True, check=True)


def test_the_real_command_prints_tasks_and_nothing_else():
  command_line = [sys.executable, '-m', 'cascades.browse_tasks', 'list']
  completed = subprocess.run(command_line, capture_output=True, text=True, check=True)
  assert 'cmudict_g2p' in completed.stdout
  warnings = completed.stderr.splitlines()
  assert all(line.startswith('BLEU of Japanese') for line in warnings)
