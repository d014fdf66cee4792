"""Exit codes of the `vimlab` command, by which launchers and sweeps tell what to do next."""

FINISHED = 0
FAILED = 1
USER_ERROR = 2  # A mistake in what was asked; running it again will not help.
RESTART = 75  # "Try again" (EX_TEMPFAIL): the state is saved, the same command goes on.
LOST = 134  # Another process of the run is gone (134 is also how a process ends that JAX aborts for it); the same command goes on.
INTERRUPTED = 130
