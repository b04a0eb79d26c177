import functools
import gzip
import json

import numpy as np
import pytest

from cascades import browse_tasks, metrics
from cascades.tasks import streams
from cascades.tasks.sources import Sources

SAMPLE = Sources(sample=True)


def write(folder, name, *rows):
  path = folder / 'online_cascade' / name
  path.parent.mkdir(parents=True, exist_ok=True)
  content = ''.join(json.dumps(row) + '\n' for row in rows).encode()
  path.write_bytes(gzip.compress(content) if name.endswith('.gz') else content)
  return path


def places(folder, **options):
  return Sources(folder, folder / 'no_tfds', **options)


def rows(folder, name='stream_isear', split='train', **options):
  return list(streams.task(name, places(folder), **options).rows(split))


@functools.cache
def gold(folder, name, split='train'):
  """The right labels of real rows, read once."""
  return np.array([row.label for row in streams.task(name, places(folder)).rows(split)])


@functools.cache
def expert_labels(folder, name, expert):
  return streams.expert_labels(name, places(folder), expert=expert)


def emotion(text, label, **experts):
  return {'idx': 9, 'text': text, 'label': label, **experts}


def test_a_row_is_a_question_a_text_and_the_label_names(tmp_path):
  write(tmp_path, 'isear.jsonl', emotion('It was dark.\u2028', 5))
  (row,) = rows(tmp_path)
  assert row.id == 'stream_isear/train/0'
  assert row.inputs == (
    'Which emotion does the writer tell of: joy, sadness, anger, guilt, shame, fear or disgust? '
    'Answer in one word. Text: It was dark.\u2028'
  )
  assert row.answers == ('fear',)
  assert row.options == ('joy', 'sadness', 'anger', 'guilt', 'shame', 'fear', 'disgust')
  assert row.label == 5


@pytest.mark.parametrize(
  ('name', 'options', 'words'),
  [
    ('stream_imdb', ('negative', 'positive'), 'film review positive or negative'),
    ('stream_hatespeech', ('no', 'yes'), 'hate speech in this forum post? Answer yes or no'),
    ('stream_fever', ('false', 'true'), 'June 2017. Was it true or false'),
  ],
)
def test_each_stream_asks_for_one_of_its_labels(name, options, words):
  row = next(streams.task(name, SAMPLE).rows('train'))
  assert row.options == options
  assert row.inputs.index(words) < row.inputs.index(': ')


def test_texts_may_be_had_alone_or_with_another_prompt(tmp_path):
  write(tmp_path, 'isear.jsonl', emotion('a {text} {x}', 0))
  assert rows(tmp_path, prompt='{text}')[0].inputs == 'a {text} {x}'
  assert rows(tmp_path, prompt='{y} {text}!')[0].inputs == '{y} a {text} {x}!'
  with pytest.raises(ValueError, match=r"The prompt 'Which\?' of stream_isear has no {text}"):
    rows(tmp_path, prompt='Which?')


def test_rows_keep_the_order_of_the_file(tmp_path):
  write(tmp_path, 'isear.jsonl.gz', *(emotion(f'text {i}', i % 7) for i in range(30)))
  found = rows(tmp_path, prompt='{text}')
  assert [row.inputs for row in found] == [f'text {i}' for i in range(30)]
  assert [row.id for row in found] == [f'stream_isear/train/{i}' for i in range(30)]


@pytest.mark.parametrize('name', ['imdb_train.jsonl', 'imdb_train.jsonl.gz'])
def test_files_are_found_below_the_data_directory_or_one_folder_deeper(tmp_path, name):
  file = write(tmp_path / 'deeper', name, emotion('x', 1))
  for folder in (tmp_path, tmp_path / 'deeper'):
    assert streams.task('stream_imdb', places(folder)).origin.location('train') == str(file)
    assert rows(folder, 'stream_imdb')[0].targets == 'positive'


@pytest.mark.parametrize('split', ['train', 'test'])
def test_missing_files_are_one_error_without_promise_of_a_download(tmp_path, split):
  task = streams.task('stream_imdb', places(tmp_path, allow_download=True))
  for ask in (lambda split: next(task.rows(split)), task.origin.location, task.fingerprint):
    with pytest.raises(FileNotFoundError) as caught:
      ask(split)
    message = str(caught.value)
    assert f'split {split} of streams/imdb' in message
    assert f'{tmp_path}/[*/] for online_cascade/imdb_{split}.jsonl[.gz]' in message
    assert 'allow_download' not in message


@pytest.mark.parametrize('label', [7, -2, 'boredom', None, 1.5, True])
def test_a_label_outside_the_set_names_file_and_line(tmp_path, label):
  write(tmp_path, 'isear.jsonl', emotion('a', 0), emotion('b', label))
  with pytest.raises(ValueError, match=r'isear\.jsonl, line 2: the label .* is none of'):
    rows(tmp_path)


def test_a_missing_text_names_file_and_line_even_if_malformed_lines_may_be_skipped(tmp_path):
  write(tmp_path, 'isear.jsonl', {'label': 0}, emotion('b', 1))
  task = streams.task('stream_isear', places(tmp_path, malformed='skip'))
  with pytest.raises(ValueError, match=r"isear\.jsonl, line 1: there is no field 'text'"):
    list(task.rows('train'))  # else an expert's labels would belong to other rows


def test_the_second_half_of_fevers_development_claims_is_the_test(tmp_path):
  claims = [
    {'text': 'a', 'label': 'SUPPORTS', 'split': 'paper_dev'},
    {'text': 'b', 'label': 'SUPPORTS', 'split': 'paper_test'},
    {'text': 'c', 'label': 'NOT ENOUGH INFO', 'split': 'paper_test'},
    {'text': 'd', 'label': 'REFUTES', 'split': 'paper_test'},
    {'text': 'e', 'label': 1},
  ]
  write(tmp_path, 'fever_dev19998.jsonl', *claims)
  found = rows(tmp_path, 'stream_fever', 'test', prompt='{text}')
  assert [(row.inputs, row.targets) for row in found] == [
    ('b', 'true'),
    ('d', 'false'),
    ('e', 'true'),
  ]


def test_expert_labels_lie_in_the_order_of_the_rows(tmp_path):
  lines = [emotion(str(i), i % 7, gpt35=(i * 3) % 7, llama2_70b=-1) for i in range(20)]
  write(tmp_path, 'isear.jsonl', *lines)
  found = streams.expert_labels('stream_isear', places(tmp_path), expert='gpt35')
  np.testing.assert_array_equal(found, [(i * 3) % 7 for i in range(20)])
  assert found.dtype == np.int32
  silent = streams.expert_labels('stream_isear', places(tmp_path), expert='llama2_70b')
  assert set(silent) == {streams.UNPARSABLE}


@pytest.mark.parametrize(
  ('line', 'reason'),
  [({}, "no field 'gpt35'"), ({'gpt35': 7}, r'the label 7 of .gpt35. is none of')],
)
def test_a_missing_or_impossible_expert_label_names_file_and_line(tmp_path, line, reason):
  write(tmp_path, 'isear.jsonl', emotion('a', 0, gpt35=0), emotion('b', 1, **line))
  with pytest.raises(ValueError, match=rf'isear\.jsonl, line 2: .*{reason}'):
    streams.expert_labels('stream_isear', places(tmp_path), expert='gpt35')


@pytest.mark.parametrize(
  ('name', 'expert', 'split', 'reason'),
  [
    ('stream_fever', 'gpt35', 'train', "came without their claims' order"),
    ('stream_fever', 'gpt35', 'test', "came without their claims' order"),
    ('stream_imdb', 'gpt35', 'test', 'No expert labeled split test of stream_imdb, only train'),
    ('stream_isear', 'gpt35', 'test', "stream_isear has no split 'test'; its splits are train"),
    ('stream_isear', 'gpt4', 'train', "'gpt4' is no recorded expert; they are gpt35, llama2_70b"),
    ('stream_trec', 'gpt35', 'train', "'stream_trec' is no stream; they are stream_imdb, "),
  ],
)
def test_labels_that_nobody_recorded_are_refused_with_the_reason(name, expert, split, reason):
  with pytest.raises(ValueError, match=reason):
    streams.expert_labels(name, SAMPLE, expert=expert, split=split)


def test_the_fingerprint_follows_the_file_and_the_prompt(tmp_path):
  def fingerprint(prompt=None):
    return streams.task('stream_isear', places(tmp_path), prompt=prompt).fingerprint('train')

  write(tmp_path, 'isear.jsonl', emotion('a', 0))
  first = fingerprint()
  assert first == fingerprint()
  assert fingerprint('{text}') != first
  write(tmp_path, 'isear.jsonl', emotion('b', 0))
  assert fingerprint() != first


@pytest.mark.parametrize('name', streams.STREAMS)
def test_hand_written_rows_serve_every_split_and_have_every_label(name):
  task = streams.task(name, SAMPLE)
  assert task.suite == 'streams'
  assert all(metrics.by_name(metric) for metric in task.metrics)
  for split in task.splits:
    found = list(task.rows(split))
    assert len(found) == len({row.id for row in found}) >= 8
    assert {row.label for row in found} == set(range(len(found[0].options)))
    assert all(row.targets == row.options[row.label] for row in found)


@pytest.mark.parametrize('name', ['stream_imdb', 'stream_isear', 'stream_hatespeech'])
def test_hand_written_experts_err_and_sometimes_say_what_is_no_label(name):
  labels = [row.label for row in streams.task(name, SAMPLE).rows('train')]
  for expert in streams.EXPERTS:
    found = streams.expert_labels(name, SAMPLE, expert=expert)
    assert len(found) == len(labels)
    assert 0.5 < np.mean(found == labels) < 1
  assert name == 'stream_hatespeech' or streams.UNPARSABLE in found


@pytest.mark.parametrize(
  ('name', 'split', 'counts'),
  [
    ('stream_imdb', 'train', [12_500, 12_500]),
    ('stream_imdb', 'test', [12_500, 12_500]),
    ('stream_hatespeech', 'train', [9507, 1196]),
    ('stream_isear', 'train', [1094, 1096, 1096, 1093, 1096, 1095, 1096]),
    ('stream_fever', 'train', [3259, 3253]),
    ('stream_fever', 'test', [3333, 3333]),
  ],
)
def test_real_streams_have_the_published_counts(real_data, caplog, name, split, counts):
  labels = gold(real_data, name, split)
  assert np.bincount(labels).tolist() == counts
  assert len(labels) == streams.task(name, SAMPLE).sizes[split]
  assert 'published' not in caplog.text


def test_the_whole_development_file_of_fever_has_three_classes_of_claims(real_data, tmp_path):
  file = real_data / 'online_cascade' / 'fever_dev19998.jsonl'
  lines = file.read_text().split('\n')[:-1]
  assert len(lines) == 19_998
  training = {row.inputs for row in rows(real_data, 'stream_fever', prompt='{text}')}
  held_out = {row.inputs for row in rows(real_data, 'stream_fever', 'test', prompt='{text}')}
  assert not training & held_out
  assert len(training & {json.loads(line)['text'] for line in lines}) > 6500


@pytest.mark.parametrize(
  ('name', 'expert', 'right', 'unparsable'),
  [
    ('stream_imdb', 'gpt35', 0.94152, 0),
    ('stream_imdb', 'llama2_70b', 0.93332, 862),
    ('stream_hatespeech', 'gpt35', 0.8334, 0),
    ('stream_hatespeech', 'llama2_70b', 0.7781, 0),
    ('stream_isear', 'gpt35', 0.7035, 0),
    ('stream_isear', 'llama2_70b', 0.6824, 241),
  ],
)
def test_real_experts_are_as_accurate_as_published(real_data, name, expert, right, unparsable):
  found = expert_labels(real_data, name, expert)
  assert np.mean(found == gold(real_data, name)) == pytest.approx(right, abs=5e-5)
  assert np.sum(found == streams.UNPARSABLE) == unparsable


def test_the_recorded_expert_finds_most_of_the_hate(real_data):
  hateful = gold(real_data, 'stream_hatespeech') == 1
  found = expert_labels(real_data, 'stream_hatespeech', 'gpt35')
  assert np.sum(found[hateful] == 1) == 996


def test_rows_for_the_program_have_the_experts_answer(tmp_path):
  write(tmp_path, 'isear.jsonl', emotion('a', 5, gpt35=0), emotion('b', 1, gpt35=-1))
  rows = list(streams.recorded('stream_isear', places(tmp_path), expert='gpt35', prompt='{text}'))
  assert rows == [
    {'id': 'stream_isear/train/0', 'inputs': 'a', 'targets': ['fear'], 'expert': 'joy'},
    {'id': 'stream_isear/train/1', 'inputs': 'b', 'targets': ['sadness'], 'expert': ''},
  ]
  assert 'expert' not in next(streams.recorded('stream_isear', places(tmp_path)))


def test_the_command_prints_them(capsys):
  words = ['stream_rows', 'stream_isear', '--sample', '--expert=llama2_70b']
  assert browse_tasks.main(words) == 0
  rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert rows == list(streams.recorded('stream_isear', SAMPLE, expert='llama2_70b'))
