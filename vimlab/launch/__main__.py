"""`python -m vimlab.launch` is `vimlab launch`."""

import sys

from vimlab.cli import entry

entry(["launch", *sys.argv[1:]])
