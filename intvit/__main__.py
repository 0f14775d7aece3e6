"""`python -m intvit`: the command line."""

from intvit.cli import entry

entry()
