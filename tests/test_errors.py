from __future__ import annotations

import pytest

from mixopt import errors
from mixopt.errors import LISTED, MixoptError, ScoreError, listing, names, unknown


@pytest.mark.parametrize("name", ["SpecError", "CheckpointError", "PoolError", "DataError", "ScoreError", "RunError"])
def test_every_error_is_a_mixopt_error_and_in_the_tree(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, MixoptError)
    assert f"── {name} " in str(errors.__doc__)


def test_the_tree_lists_no_other() -> None:
    kinds = {kind.__name__ for kind in MixoptError.__subclasses__() if kind.__module__ == "mixopt.errors"}
    drawn = {line.split()[1] for line in str(errors.__doc__).splitlines() if "──" in line}
    assert kinds == drawn


def test_a_score_error_names_its_group() -> None:
    assert ScoreError("nan", "blocks.3").group == "blocks.3"
    assert ScoreError("nan").group is None
    assert str(ScoreError("the loss is nan", "g")) == "the loss is nan"


def test_one_problem_stays_on_one_line() -> None:
    assert listing("cannot be mixed", ["a: lacks b"]) == "cannot be mixed: a: lacks b"


def test_several_problems_get_a_line_each() -> None:
    assert listing("bad", ["one", "two"]).splitlines() == ["bad, 2 problems:", "  - one", "  - two"]


@pytest.mark.parametrize("count", [LISTED, LISTED + 1, LISTED + 30])
def test_a_listing_is_cut_at_its_limit_and_counts_the_rest(count: int) -> None:
    lines = listing("bad", [f"problem {number}" for number in range(count)]).splitlines()
    assert lines[0] == f"bad, {count} problems:"
    assert lines[1 : LISTED + 1] == [f"  - problem {number}" for number in range(LISTED)]
    assert lines[LISTED + 1 :] == ([f"  ... and {count - LISTED} more"] if count > LISTED else [])


def test_names_are_shortened() -> None:
    assert names(["a", "b"]) == "a, b"
    assert names([]) == ""
    assert names((str(number) for number in range(7)), 3) == "0, 1, 2 and 4 more"


def test_unknown_suggests_the_nearest_and_lists_all() -> None:
    text = unknown("metric", "acuracy", ["nll", "accuracy"], ", or your own")
    assert text == "unknown metric 'acuracy'; did you mean 'accuracy'? Known: accuracy, nll, or your own"


def test_unknown_suggests_nothing_where_nothing_is_near() -> None:
    assert unknown("metric", "zzz", ["nll", "accuracy"]) == "unknown metric 'zzz'. Known: accuracy, nll"
