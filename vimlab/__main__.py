"""`python -m vimlab` is the `vimlab` command."""

from vimlab.cli import entry

entry()
