"""For programs that are compiled more than they are run, as most in tests are: XLA does as little to them as it can."""

import functools

import jax

# Of XLA's two generators of code for CPUs, the older takes half as long; what it makes runs up to a tenth slower. Only jax 0.10 is
# known to have it: jax 0.12 does not, and XLA ends a process that sets a flag which it does not know.
OLD_EMITTERS = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1} if jax.__version_info__ < (0, 11) else {}
OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True} | OLD_EMITTERS

quick = functools.partial(jax.jit, compiler_options=OPTIONS)


def flags(options: dict[str, bool | int] = OPTIONS) -> str:
    """What XLA_FLAGS is to be, for all programs of a process that starts with it."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in options.items())
