"""TrainState: everything that a run carries from one step to the next, as one pytree of plain arrays."""

from typing import Any

import flax.struct


@flax.struct.dataclass
class TrainState:
    """The whole of a run besides its data position, which equals `step`; or the shapes or layouts of all that.

    Attributes:
      step: i32[], optimizer steps made (skipped ones included).
      params: {network name: parameters, f32}.
      opt_state: {network name: optax state}.
      ema: {network name: averaged parameters}; empty where no average is kept.
      extra: {name: arrays} that are neither, such as codebook statistics and counters.
    """

    step: Any
    params: dict[str, Any]
    opt_state: dict[str, Any]
    ema: dict[str, Any]
    extra: dict[str, Any]

    def best(self, name: str) -> Any:
        """The parameters to evaluate with: the average where one is kept, else the trained ones."""
        return self.ema.get(name, self.params[name])
