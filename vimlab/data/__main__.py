"""`python -m vimlab.data` is `vimlab data`."""

import sys

from vimlab.cli import entry

entry(["data", *sys.argv[1:]])
