"""What became of a run, told from exit codes alone, and whether to start it again."""

import dataclasses
import enum
import signal
from collections.abc import Callable, Sequence

from vimlab import exits

# Signals that end a process for reasons outside it, or because JAX has lost another process of the run.
LOST = tuple(128 + int(s) for s in (signal.SIGHUP, signal.SIGINT, signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM))
GOES_ON = (exits.RESTART, *sorted(LOST))  # After these the same command goes on.


class Outcome(enum.Enum):
    """What a launcher distinguishes."""

    FINISHED = "finished"
    PREEMPTED = "preempted"  # Saved and stopped, or lost to a signal: the same command goes on.
    USER_ERROR = "refused"  # What was asked is wrong: another start would say the same.
    FAILED = "failed"


@dataclasses.dataclass(frozen=True)
class End:
    """How one start of a run ended.

    Attributes:
      outcome: what it means.
      code: the exit code that told so; negative for a signal, as Python gives it.
      why: half a sentence for people.
    """

    outcome: Outcome
    code: int
    why: str


def judge(code: int) -> Outcome:
    """The meaning of one process's exit code; shells and containers report a signal as 128 + its number, Python as -number."""
    if code == exits.FINISHED:
        return Outcome.FINISHED
    if code == exits.USER_ERROR:
        return Outcome.USER_ERROR
    if (128 - code if code < 0 else code) in GOES_ON:
        return Outcome.PREEMPTED
    return Outcome.FAILED


def judge_all(codes: Sequence[int]) -> tuple[Outcome, int]:
    """The meaning of several processes' exit codes, and the code that decided.

    A mistake of the user's outweighs all, since another start would make it again. A signal or a restart outweighs a failure: the
    peers of a process that was lost fail of its loss.
    """
    order = (Outcome.USER_ERROR, Outcome.PREEMPTED, Outcome.FAILED, Outcome.FINISHED)
    return min(((judge(code), code) for code in codes), key=lambda pair: order.index(pair[0]))


def supervise(start: Callable[[int], End], say: Callable[[str], None], *, restarts: int, retries: int, stopped: Callable[[], bool]) -> int:
    """Starts a run again until it has finished or should not go on.

    Args:
      start: makes start number i = 1, 2, … and returns how it ended.
      say: prints a line.
      restarts: new starts that preemptions may use up.
      retries: new starts that failures may use up.
      stopped: whether the user has asked for the end.

    Returns:
      An exit code: 0 finished, 75 the same command goes on, 2 for a mistake in what was asked, else the code that failed.
    """
    number = 1
    while True:
        end = start(number)
        if end.outcome is Outcome.FINISHED:
            return exits.FINISHED
        if end.outcome is Outcome.USER_ERROR:
            say(f"not started again: {end.why}")
            return exits.USER_ERROR
        if stopped():
            say("stopped as asked; the same command goes on")
            return exits.RESTART
        if end.outcome is Outcome.PREEMPTED:
            if restarts == 0:
                say(f"{end.why}; no restarts are left (--restarts), the same command goes on")
                return exits.RESTART
            restarts, left = restarts - 1, f"{restarts - 1} restarts left"
        else:
            if retries == 0:
                say(f"{end.why}; not started again (--retries counts the failures to try again after)")
                return end.code if 0 < end.code < 128 else exits.FAILED
            retries, left = retries - 1, f"{retries - 1} retries left"
        number += 1
        say(f"{end.why}; start {number} follows, {left}")
