"""Definitions read from source equal those of the imported modules."""

import importlib
import inspect

import pytest

from cascades.settings import help_text, sources, type_hints

# The others have the same kinds of arguments.
PROGRAMS = ('train', 'infer', 'evaluate', 'route')


@pytest.mark.parametrize('name', PROGRAMS)
def test_arguments_config_objects_and_docstrings_are_those_of_the_imported_function(name):
  function = getattr(importlib.import_module(f'cascades.{name}'), name)
  stated = sources.definition(f'cascades.{name}', name)
  assert sources.doc(stated.node) == inspect.getdoc(function)
  arguments = sources.arguments(stated)
  evaluated = type_hints.of_arguments(function)
  assert evaluated.keys() <= arguments.keys()
  for argument, hint in evaluated.items():
    configs = type_hints.configs(hint)
    assert [(each.module, each.node.name) for each in arguments[argument]] == [
      (config.__module__, config.__name__) for config in configs
    ]
    docs = [inspect.getdoc(config) for config in configs]
    assert [sources.doc(each.node) for each in arguments[argument]] == docs


def test_a_name_that_the_package_does_not_have_has_no_definition():
  assert sources.definition('cascades.train', 'jax') is None
  assert sources.definition('cascades.train', 'loop.nothing') is None
  assert sources.definition('numpy', 'array') is None


def test_only_programs_with_this_command_line_have_help():
  others = ('browse_tasks', 'predictions', 'losses', 'finetune', 'salt', '')
  assert help_text.exists('cascades.train')
  assert not any(help_text.exists(program) for program in ('train', ''))
  assert not any(help_text.exists(f'cascades.{name}') for name in others)
