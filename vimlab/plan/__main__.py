"""`python -m vimlab.plan` is `vimlab plan`."""

import sys

from vimlab.cli import entry

entry(["plan", *sys.argv[1:]])
