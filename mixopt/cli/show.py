"""What commands print of a result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixopt.cli.narrow import Grid
from mixopt.cli.rows import show_columns, show_rows
from mixopt.cli.screen import Screen

if TYPE_CHECKING:
    from mixopt.reporting.diagnosis import Diagnosis
    from mixopt.reporting.schema import Report

MATRIX_LIMIT = 20  # more columns are too wide for a terminal; --json has them all


def show_run(screen: Screen, report: Report, folder: Path) -> None:
    """The table of a search, and why its own row is not the highest where it is not."""
    if screen.as_json:
        screen.json(report.as_dict())
        return
    from mixopt.reporting.answer import answer
    from mixopt.reporting.below import why_below

    show_rows(screen, report, folder, details=False)
    if why := why_below(report):
        screen.note(why)
    screen.note(answer(report))


def show_comparison(screen: Screen, report: Report, failed: Mapping[str, str], folder: Path) -> None:
    """The tables of a comparison, then each row that failed.

    Args:
        screen: Where to.
        report: What report.json holds.
        failed: Row name to reason.
        folder: The run folder.
    """
    if screen.as_json:
        screen.json(report.as_dict())
    else:
        from mixopt.reporting.answer import answer

        show_rows(screen, report, folder, details=True)
        _show_differences(screen, report)
        _show_winner(screen, report, folder)
        screen.note(answer(report))
    rows_of: dict[str, list[str]] = {}
    for name, reason in failed.items():
        rows_of.setdefault(" ".join(reason.split()), []).append(name)
    for reason, rows in rows_of.items():
        screen.error(f"{', '.join(rows)}: {reason}", kind="failed")


def show_report(screen: Screen, report: Report, folder: Path) -> None:
    """What the run's own command showed, and the Pareto front where there is one."""
    if report.command == "compare":
        show_comparison(screen, report, report.failed, folder)
        return
    show_run(screen, report, folder)
    if report.front and not screen.as_json:
        from mixopt.reporting.tables import front

        grid = Grid(*front(report.front))
        last = len(grid.header) - 1  # which one was picked
        show_columns(screen, "trials on the Pareto front", grid, [0, last, *range(1, last)], folder)


def show_diagnosis(screen: Screen, found: Diagnosis, folder: Path) -> None:
    """Every checkpoint in a line, and which mixes worst with the others."""
    if screen.as_json:
        screen.json(found.as_dict())
        return
    from mixopt.reporting.page.sections import basins
    from mixopt.reporting.page.table import checkpoint_table

    shown = checkpoint_table(found)
    grid = Grid(list(shown.header), [[cell.text for cell in row.cells] for row in shown.rows])
    last = len(grid.header) - 1  # how half-way mixes do, which is asked here
    order = [0, last, *range(1, last)]
    show_columns(screen, f"{found.metric} of {len(grid.cells)} checkpoints; {folder}", grid, order, folder)
    if shown.caption:
        screen.note(shown.caption)
    if found.midpoints is not None:
        screen.out(basins(found.midpoints))
    for reason in found.missing.values():
        screen.out(reason)


def _show_differences(screen: Screen, report: Report) -> None:
    from mixopt.reporting.tables import compared_by, comparisons

    header, cells = comparisons(report)
    if len(header) == 1:
        return
    if screen.fits(header, cells):
        screen.table(f"paired {compared_by(report)}", header, cells)
    else:
        screen.note("paired tests against individual and greedy: in report.json, and here in a wider terminal")


def _show_winner(screen: Screen, report: Report, folder: Path) -> None:
    from mixopt.reporting.tables import ties

    equal = ties(report)
    tied = f" (as good there: {', '.join(equal)})" if equal else ""
    held = report.splits["validation"].samples - report.tuning
    by = f"on the {held:,} selection samples held back" if held else "on the validation split"
    model = folder / "model.safetensors"
    model = model if model.exists() else folder / "model.safetensors.index.json"
    screen.out(f"best {by}: {report.best}{tied}; saved as {model}")
    # A user's own function is imported where the user names it, and nowhere else.
    own = f" --family {report.family}" if report.family and ":" in report.family else ""
    screen.out(f"Next: mixopt evaluate {model} --data FILE{own}; for another row's model, the same")
    screen.out("command with --methods ROW and another --out, which takes its scores from the cache")


def show_splits(screen: Screen, result: Mapping[str, Any]) -> None:
    """The scores of one checkpoint."""
    if screen.as_json:
        screen.json(result)
        return
    # Not every metric is for every split.
    measured = list(dict.fromkeys(key for split in result["splits"].values() for key in split["metrics"]))
    cells = [
        [
            name,
            f"{split['samples']:,}",
            *(f"{split['metrics'][key]:.4f}" if key in split["metrics"] else "-" for key in measured),
        ]
        for name, split in result["splits"].items()
    ]
    screen.table(result["model"], ["split", "samples", *measured], cells)
    if result["verified"]:
        screen.out("its weights are those of its recipe")


def show_pool(screen: Screen, found: Mapping[str, Any]) -> None:
    """What is in a pool, and every problem with it."""
    if screen.as_json:
        screen.json(found)
        return
    _show_model(screen, found)
    if "ingredients" in found:
        cells = [
            [
                item["name"],
                f"{item['bytes']:,}",
                item["hash"],
                f"{item['distance']:.4f}",
                "-" if item["base_cosine"] is None else f"{item['base_cosine']:.4f}",
                f"{item['mean_cosine']:.3f}",
            ]
            for item in found["ingredients"]
        ]
        screen.table(
            f"{len(cells)} ingredients; base: {found['base'] or 'none'}; distance from {found['centre']}, cosine to "
            "the base, mean cosine to the others' deltas",
            ["ingredient", "bytes", "hash", "distance", "base cosine", "mean cosine"],
            cells,
        )
        screen.table(
            f"layer groups (--groups {found['scheme']})",
            ["group", "tensors", "parameters"],
            [[item["name"], str(item["tensors"]), f"{item['parameters']:,}"] for item in found["groups"]],
        )
        identical = found["identical"]
        listed = ", ".join(identical["names"][:6]) + (" ..." if len(identical["names"]) > 6 else "")
        screen.out(
            f"{found['mixed']['tensors']} tensors with {found['mixed']['parameters']:,} parameters differ; "
            f"{identical['tensors']} with {identical['parameters']:,} are identical in all"
            + (f": {listed}" if listed else "")
        )
        _show_matrix(screen, "distance between ingredients", found["ingredients"], found["distances"], 3)
        _show_matrix(screen, "cosine between ingredients' deltas", found["ingredients"], found["cosines"], 2)
    for name, split in found.get("splits", {}).items():
        screen.out(f"split {name}: {split['samples']:,} samples, {split['classes']} classes")
    for problem in found["problems"]:
        screen.error(problem)
    if "pool_toml" in found:
        screen.out(f"mixopt init writes this pool.toml:\n\n{found['pool_toml']}")
    if not found["problems"]:
        screen.out("no problems found")


def _show_model(screen: Screen, found: Mapping[str, Any]) -> None:
    """What a file holds, and what model it was recognised as."""
    if "checkpoint" in found:
        kinds = ", ".join(f"{count} of {kind}" for kind, count in found["dtypes"].items())
        screen.out(f"{found['checkpoint']}: {found['tensors']} tensors ({kinds}), {found['parameters']:,} parameters")
    if "reason" in found:
        model = f", model {found['model']}" if found["model"] else ""
        screen.out(f"family {found['family']}{model}{': ' if found['reason'] else ''}{found['reason']}")
    if "unrecognised" in found:
        screen.out(found["unrecognised"])


def _show_matrix(
    screen: Screen, title: str, items: list[dict[str, Any]], values: list[list[float]], digits: int
) -> None:
    if len(items) > MATRIX_LIMIT:
        return
    header = ["", *(str(number) for number in range(len(items)))]
    cells = [
        [f"{number} {item['name']}", *(f"{value:.{digits}f}" for value in row)]
        for number, (item, row) in enumerate(zip(items, values, strict=True))
    ]
    screen.table(title, header, cells)
