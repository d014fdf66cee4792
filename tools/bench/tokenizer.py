"""Times the tokenizer's training and code search against plain torch: same weights, outputs compared, turns taken.

    python tools/bench/tokenizer.py [--torch-python PATH] [--json FILE] [--only PATTERN] [--seconds S] [--core N]

torch lives in its own environment: python -m venv .venv-torch && .venv-torch/bin/pip install torch==2.13.0 numpy

Both sides run as child processes with huge-page allocation and as many threads as there are cores. They take turns in the
order A B C, C B A, …; figures are wall clock of whole steps, and a ratio is the median over rounds of torch's time by
ours, with a bootstrap 95% interval. On a machine that is busy with other work use --core: one pinned core, one thread,
CPU time. Every cell is printed, whoever wins.
"""

import sys

from cells import CELLS
from compare import main

if __name__ == "__main__":
    scripts = {"jax": "jax_side.py", "torch": "torch_side.py"}
    sys.exit(main(__doc__.splitlines()[0], CELLS, scripts, ["torch"], seconds=30.0))
