"""What a terminal has room for: columns by importance, names that stay apart, bars."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.cli.narrow import EIGHTHS, FEWEST, Grid, bars, compact, fitting, shortened

LONG = "learned_by_layer:affine:groups=block:cosine"


def test_columns_are_taken_by_importance_and_shown_from_left_to_right() -> None:
    grid = Grid(["name", "a", "bb", "ccc"], [["x", "1", "2", "3"]])

    def fits(part: Grid) -> bool:
        return sum(map(len, part.header)) <= 8

    assert fitting(grid, [0, 1, 2, 3], fits) == [0, 1, 2]
    assert fitting(grid, [0, 3, 2, 1], fits) == [0, 1, 3]
    assert fitting(grid, [0, 2, 3, 1], fits) == [0, 1, 2], "what does not fit is passed over"
    assert fitting(grid, [3, 0, 1, 2], lambda _: False) == [3]
    assert grid.only([0, 2]) == Grid(["name", "bb"], [["x", "2"]])


@pytest.mark.parametrize(
    ("names", "longest", "expected"),
    [
        (["greedy", LONG], 24, ["greedy", "learned_by_layer:..."]),
        (["greedy", LONG], 28, ["greedy", "learned_by_layer:affine:..."]),
        (["greedy", LONG], 18, ["greedy", "learned_by_laye..."]),
        (["greedy", LONG], 43, ["greedy", LONG]),
        # Two that would be the same keep what tells them apart.
        ([LONG, f"{LONG}:more"], 24, ["learned_by...lock:cosine", "learned_by...cosine:more"]),
        (["a" * 30, "a" * 31], 20, ["a" * 30, "a" * 31]),
    ],
)
def test_names_are_shortened_at_their_parts(names: list[str], longest: int, expected: list[str]) -> None:
    assert shortened(names, longest) == expected


@given(st.lists(st.text("ab:=.", min_size=1, max_size=40), unique=True, max_size=12), st.integers(1, 40))
def test_shortened_names_stay_apart(names: list[str], longest: int) -> None:
    found = shortened(names, longest)
    assert len(set(found)) == len(names)
    for name, shown in zip(names, found, strict=True):
        assert shown == name or len(shown) <= max(longest, FEWEST)
        assert shown == name or len(name) > max(longest, FEWEST), "what fits is left alone"


def test_bars_go_from_the_lowest_to_the_highest() -> None:
    assert bars([0.1, 0.3, 0.2], 4, blocks=False) == ["#", "####", "###"]
    assert bars([-1.0, 0.0, 1.0], 2, blocks=True) == ["▏", "█▏", "██"]
    assert bars([0.5, 0.5], 3, blocks=True) == ["███", "███"]
    steps = bars(list(range(24)), 3, blocks=True)
    assert steps[:8] == list(EIGHTHS)
    assert len(set(steps)) == 24


def test_counts_in_few_characters() -> None:
    counts = [0, 999, 1_000, 9_540, 95_400, 344_500, 9_500_000, 12_345_678_901]
    assert [compact(each) for each in counts] == ["0", "999", "1.0k", "9.5k", "95k", "344k", "9.5M", "12G"]
