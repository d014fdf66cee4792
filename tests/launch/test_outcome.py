"""Exit codes and what follows from them, as a table."""

import pytest

from vimlab.launch.outcome import End, Outcome, judge, judge_all, supervise

F, P, U, X = Outcome.FINISHED, Outcome.PREEMPTED, Outcome.USER_ERROR, Outcome.FAILED


@pytest.mark.parametrize("code, outcome", [
    (0, F), (75, P), (2, U), (1, X), (3, X), (126, X), (127, X),
    (-9, P), (-15, P), (-6, P), (-11, P), (137, P), (143, P), (134, P), (139, P), (130, P),
    (-4, X), (132, X), (255, X), (128, X),  # An instruction that the machine lacks comes again; 255 is for who knows what gave it.
])  # fmt: skip
def test_what_one_code_means(code, outcome):
    assert judge(code) is outcome


@pytest.mark.parametrize("codes, outcome, decided", [
    ([0, 0], F, 0), ([0, 75], P, 75), ([1, -9], P, -9), ([-9, 2], U, 2), ([0, 1], X, 1), ([134, 1, 0], P, 134),
])  # fmt: skip
def test_what_several_codes_mean(codes, outcome, decided):
    assert judge_all(codes) == (outcome, decided)


@pytest.mark.parametrize("codes, restarts, retries, stopped, result, starts", [
    ([0], 9, 9, False, 0, 1),
    ([75, -9, 134, 0], 3, 0, False, 0, 4),
    ([75, -9, 134, 0], 2, 9, False, 75, 3),  # Restarts are used up: the same command goes on.
    ([2, 0], 9, 9, False, 2, 1),  # The same mistake would be made again.
    ([1, 0], 9, 0, False, 1, 1),
    ([3, 1, 0], 0, 2, False, 0, 3),
    ([3, 7], 9, 1, False, 7, 2),
    ([75, 0], 9, 9, True, 75, 1),  # The user has asked for the end.
    ([-9], 9, 9, True, 75, 1),
    ([-4], 0, 0, False, 1, 1),  # No negative exit codes.
])  # fmt: skip
def test_when_a_run_is_started_again(codes, restarts, retries, stopped, result, starts):
    said, numbers = [], []

    def start(number):
        numbers.append(number)
        code = codes[number - 1]
        return End(judge(code), code, f"code {code}")

    assert supervise(start, said.append, restarts=restarts, retries=retries, stopped=lambda: stopped) == result
    assert numbers == list(range(1, starts + 1))
    assert len(said) == starts - (result == 0)  # Each end but a good one is told.
