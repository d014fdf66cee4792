"""What a generator is told when a whole set of pictures is drawn: which class or caption each picture has."""

import numpy as np

from vimlab.config import ConfigError
from vimlab.evals.evaluator import Subject, condition_of, to_host


def conditions_of(subject: Subject, plan: str, count: int, seed: int) -> np.ndarray:
    """Conditions of `count` pictures, labels i32[count] or text ids i32[count,T].

    Args:
      plan: as `protocols.Protocol` has it; "random" draws from the seed alone.

    Raises:
      ConfigError: a plan of classes for a model that is told none, or the other way round.
    """
    if subject.condition == "none":
        return np.zeros(count, np.int32)
    if plan == "set":
        found = [to_host(condition_of(rows))[real] for _, rows, real in subject.rows()]
        conditions = np.concatenate(found)
        return conditions[np.arange(count) % len(conditions)]
    classes = len(subject.source.info.class_names or ())
    if subject.condition != "class" or not classes:
        raise ConfigError(f"the plan {plan!r} is of classes, but this model is told {subject.condition!r}; set plan=set")
    if plan == "balanced":
        return np.arange(count, dtype=np.int32) % classes
    return np.random.default_rng(seed).integers(0, classes, count, dtype=np.int32)
