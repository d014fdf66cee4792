"""Times the generator's decoding and training against plain torch: same weights, outputs compared, turns taken.

    python tools/bench/generator.py [--torch-python PATH] [--json FILE] [--only PATTERN] [--seconds S] [--core N]

torch lives in its own environment: python -m venv .venv-torch &&
.venv-torch/bin/pip install torch==2.13.0 numpy 'transformers>=5,<6'

Decoding is timed against whole passes for each position, against a torch decoder with a static cache, and against
`transformers`' GPT-2 of the same size with weights of its own. It is greedy, so that the ids can be compared. How the two
sides take turns, and what the figures are, is as in tokenizer.py. Every cell is printed, whoever wins.
"""

import sys

from compare import main
from generator_cells import CELLS

if __name__ == "__main__":
    scripts = {"jax": "generator_jax_side.py", "torch": "generator_torch_side.py"}
    sys.exit(main(__doc__.splitlines()[0], CELLS, scripts, ["torch", "transformers"], seconds=12.0))
