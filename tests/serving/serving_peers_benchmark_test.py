"""The comparison with other servers: its questions, its client, and what it measures again."""

import json
import sys

from benchmarks import bars, serving, serving_peers
from benchmarks.bars import Measured
from benchmarks.serving_peers import Peer

SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
  def reply(self, content):
    body = json.dumps(content).encode()
    self.send_response(200)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)
  def do_GET(self):
    self.reply({'data': []})
  def do_POST(self):
    asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    text = asked['messages'][0]['content']
    self.reply({'choices': [{'message': {'content': text}}],
                'usage': {'completion_tokens': asked['max_tokens']}})
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
"""


def test_questions_differ():
  assert len(set(serving_peers.chats(40))) == 40


def test_a_server_is_started_asked_and_ended():
  peer = Peer([sys.executable, '-c', SERVER, '{port}'], 'model')
  rows = list(serving_peers.load('peer', peer, serving_peers.chats(5), 7, [1, 2]))
  assert [row.what for row in rows] == [
    f'peer: {count} at a time: {what}'
    for count in (1, 2)
    for what in ('throughput', 'latency, 50 %', 'latency, 95 %')
  ]
  assert all(row.value > 0 for row in rows)
  with serving_peers.running(peer) as port:
    replies = serving_peers.ask(port, 'model', 7, ['a', 'b'])
  assert [(reply.text, reply.tokens) for reply in replies] == [('a', 7), ('b', 7)]
  assert not serving.answers_at(port, '/v1/models')


def test_only_parts_that_are_not_complete_are_measured_again(tmp_path):
  asked = []

  def part(name):
    asked.append(name)
    yield from (Measured(f'{name}: {i}', i, 's') for i in range(2))

  parts = {
    name: (2, lambda name=name: part(name)) for name in ('infer', 'serve', 'serve, batching')
  }
  output, settings = tmp_path / 'peers.json', {'counts': [1, 8]}
  first = serving_peers.resumed({}, parts)
  bars.report('peers', (next(first) for _ in range(3)), output, settings)
  stored = serving_peers.stored_rows(output, settings)
  assert [*stored] == ['infer: 0', 'infer: 1', 'serve: 0']
  asked.clear()
  rows = list(serving_peers.resumed(stored, parts))
  assert [row.what for row in rows] == [f'{name}: {i}' for name in parts for i in range(2)]
  assert asked == ['serve', 'serve, batching']
  assert serving_peers.stored_rows(output, {'counts': [1]}) == {}
  content = json.loads(output.read_text()) | {'commit': 'another'}
  output.write_text(json.dumps(content))
  assert serving_peers.stored_rows(output, settings) == {}
