"""`python -m vimlab.sweep` is `vimlab sweep`."""

import sys

from vimlab.cli import entry

entry(["sweep", *sys.argv[1:]])
