"""Times the statistics of two sets of features and the Fréchet distance between them, on CPUs.

    python tools/bench/frechet.py [--count 50000] [--dimensions 2048] [--batch 256]

Prints wall-clock and CPU seconds of each part: CPU seconds divided by the cores are what an idle machine needs, and what to judge
by on a busy one. Features are drawn before the clock starts; their spectrum falls as that of networks' features does.
"""

import argparse
import os
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from vimlab.evals.frechet import Moments, frechet_distance  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50_000, help="features in each set")
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=256, help="features added at a time")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    scales = (np.arange(1, arguments.dimensions + 1) ** -0.5).astype(np.float32)
    # A pool of rows met again and again: the cost does not depend on the numbers.
    pool = np.maximum(random.standard_normal((8192, arguments.dimensions), np.float32) * scales + 0.3, 0)
    sets = []
    for name, features in (("statistics of the reference", pool), ("statistics of the samples", pool * np.float32(1.125))):
        sets.append(Moments(arguments.dimensions))
        with Clock(name):
            for start in range(0, arguments.count, arguments.batch):
                rows = np.arange(start, min(start + arguments.batch, arguments.count)) % len(pool)
                sets[-1].add(features[rows])
            reference = sets[0].gaussian()
    with Clock("distance"):
        distance = frechet_distance(*sets)
    # The samples are 1.125 times the reference, so the distance is known.
    expected = 0.125**2 * (np.square(reference.mean).sum() + np.trace(reference.covariance))
    print(f"distance {distance:.9g}, off by {abs(distance / expected - 1):.1e} from the closed form")
    print(f"{arguments.count} features of {arguments.dimensions}; {os.cpu_count()} cores, NumPy {np.__version__}")


class Clock:
    """Prints what passes between its beginning and its end."""

    def __init__(self, name: str):
        self._name = name

    def __enter__(self) -> "Clock":
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_) -> None:
        self.seconds, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        print(f"{self._name:<30} {self.seconds:7.1f} s wall {cpu:7.1f} s CPU", flush=True)


if __name__ == "__main__":
    main()
