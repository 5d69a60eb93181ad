"""Make the study's table, and results.json, of the run folders that `mixopt compare` and `mixopt search` left.

    python studies/text/table.py --pool runs/pools/text --runs runs/text --results studies/text

RUNS holds ``full`` and ``lora`` (the searches), and ``full-compare`` and ``lora-compare``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KINDS = {"full": "full fine-tunings", "lora": "LoRA adapters"}
NAMES = {"base": "base", "individual": "best individual"}
KEPT = ("name", "search", "test", "evaluations", "images", "ingredients")


def rows_of(runs: Path, kind: str) -> list[dict[str, Any]]:
    """Every row of the comparison, then those that the search alone has: where it began, and where it ended."""
    compared, searched = (_report(runs / name) for name in (f"{kind}-compare", kind))
    rows = compared["methods"]
    rows += [row for row in searched["methods"] if row["name"] not in {each["name"] for each in compared["methods"]}]
    return [
        {key: row[key] for key in KEPT} | {"nll": {name: each["nll"] for name, each in row["metrics"].items()}}
        for row in rows
    ]


def members(pool: Path, kind: str) -> list[dict[str, Any]]:
    """How each model was trained."""
    with (pool / kind / "hparams.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def table(results: dict[str, Any]) -> str:
    """The table in Markdown, a part for each pool."""
    lines = []
    for kind, title in KINDS.items():
        rows = results[kind]["rows"]
        splits = list(rows[0]["test"])
        lines += [
            f"| {title} | selection | {' | '.join(splits)} | test nll | ingredients |",
            "|---" * (len(splits) + 4) + "|",
        ]
        for row in rows:
            scores = " | ".join(f"{score:.4f}" for score in (row["search"], *row["test"].values()))
            name, loss = NAMES.get(row["name"], row["name"]), f"{row['nll'][splits[0]]:.3f}"
            lines.append(f"| {name} | {scores} | {loss} | {row['ingredients']} |")
        lines.append("")
    return "\n".join(lines)


def _report(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text(encoding="utf-8"))
    return found


def main(given: Sequence[str] | None = None) -> int:
    """Write results.json and print the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, what in (("pool", "what train.py made"), ("runs", "the run folders"), ("results", "gets results.json")):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help=what)
    options = parser.parse_args(given)
    results = {kind: {"members": members(options.pool, kind), "rows": rows_of(options.runs, kind)} for kind in KINDS}
    text = json.dumps(results, indent=1) + "\n"
    (options.results / "results.json").write_text(text, encoding="utf-8")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
