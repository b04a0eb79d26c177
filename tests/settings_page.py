"""The tables of docs/settings.md, from the macros that gin files declare and their comments.

python -m tests.settings_page
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'settings.md'
HEADING = '## The macros'
SECTIONS = {
  'Rows: the macros of every program that reads a task': 'task',
  **{
    f'`{program}`': program
    for program in (
      'train', 'salt', 'infer', 'speculate', 'embed', 'evaluate', 'calibrate', 'promote', 'route',
      'rank', 'stream', 'cache_teacher', 'memorize',
      'select', 'convert', 'export', 'prune', 'plan', 'serve',
    )
  },
}  # fmt: skip


def page() -> str:
  """The page with tables as the gin files are now; the text above them stays."""
  introduction, heading, rest = PAGE.read_text().partition(HEADING)
  text = introduction + heading + rest.partition('\n### ')[0].rstrip() + '\n'
  return text + ''.join(_section(title, name) for title, name in SECTIONS.items())


def macros(name: str) -> dict[str, tuple[str, str]]:
  """Default and comment of every macro of a file in runs/, in its order."""
  declared = {}
  lines = (ROOT / 'gin_configs' / 'runs' / f'{name}.gin').read_text().splitlines()
  for number, line in enumerate(lines):
    if match := re.match(r'([A-Z][A-Z_]+) = (.*?)(?:  +# (.*))?$', line):
      comments = [match[3] or '']
      for following in lines[number + 1 :]:
        if not re.match(r' +# ', following):
          break
        comments.append(following.strip(' #'))
      declared[match[1]] = (match[2], ' '.join(comments))
  return declared


def _section(title: str, name: str) -> str:
  lines = ['', f'### {title}', '', '| macro | default | meaning |', '|---|---|---|']
  for macro, (default, comment) in macros(name).items():
    value = 'required' if default == '%gin.REQUIRED' else f'`{default}`'
    lines.append(f'| `{macro}` | {value} | {comment.replace("|", chr(92) + "|")} |')
  return '\n'.join([*lines, ''])


if __name__ == '__main__':
  PAGE.write_text(page())
