"""The page in a real browser: it fits, draws, sorts, asks nothing of a network, and shows the report's numbers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

import mixopt
from tests.browser import open_browser

MOST_SECONDS = 2.0


@pytest.fixture(scope="module")
def run(clip_pool_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search with its page."""
    folder = tmp_path_factory.mktemp("page")
    options: dict[str, Any] = {"cache": folder / "cache", "out": folder / "run", "device": "cpu", "precision": "fp32"}
    mixopt.search(clip_pool_template, trials=24, stop=False, page="full", **options)
    return folder / "run"


def asked_of_a_network(browser: Any) -> list[str]:
    messages = [json.loads(each["message"])["message"] for each in browser.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("file:", "data:", "chrome:"))]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_page_fits_and_asks_nothing_of_a_network(run: Path, width: int, dark: bool) -> None:
    with open_browser(width, dark) as browser:
        started = time.monotonic()
        browser.get((run / "report.html").as_uri())
        assert time.monotonic() - started < 10 * MOST_SECONDS, "a busy machine; the page's own time is below"
        timing = "const [t] = performance.getEntriesByType('navigation'); return t.loadEventEnd - t.startTime"
        assert browser.execute_script(timing) < 1000 * MOST_SECONDS
        assert asked_of_a_network(browser) == []
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, "nothing sticks out"
        background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") is not dark
        assert not [each for each in browser.get_log("browser") if each["level"] == "SEVERE"]
        for box in browser.execute_script(
            "return [...document.querySelectorAll('figure svg')].filter(s => !s.closest('details'))"
            ".map(s => [s.getBoundingClientRect().width, s.getBoundingClientRect().height])"
        ):
            assert min(box) > 60


def test_table_shows_the_reports_numbers_and_sorts(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    with open_browser() as browser:
        browser.get((run / "report.html").as_uri())
        read = (
            "return [...document.querySelector('table').tBodies[0].rows].map(r => [...r.cells].map(c => c.innerText))"
        )
        shown = {cells[0].lstrip("★≈ "): cells for cells in browser.execute_script(read)}
        for row in report["methods"]:
            values = [row["search"], *row["test"].values()]
            assert [cell.split()[0] for cell in shown[row["name"]][1 : 1 + len(values)]] == [f"{v:.4f}" for v in values]
        click = "document.querySelectorAll('table')[0].tHead.rows[0].cells[1].querySelector('button').click()"
        browser.execute_script(click)
        scores = [float(cells[1].split()[0]) for cells in browser.execute_script(read)]
        assert scores == sorted(scores, reverse=True)
        browser.execute_script(click)
        assert [float(cells[1].split()[0]) for cells in browser.execute_script(read)] == sorted(scores)
        answer = browser.execute_script("return document.querySelector('.answer').innerText")
        best = next(row for row in report["methods"] if row["name"] == report["best"])
        assert f"{best['test']['test']:.4f} on test" in answer


def test_pictures_hold_points_bars_and_cells(run: Path) -> None:
    with open_browser() as browser:
        browser.get((run / "report.html").as_uri())
        titles = browser.execute_script("return [...document.querySelectorAll('svg title')].map(t => t.textContent)")
        assert sum("visual" in each or "stem" in each for each in titles) >= 4, "cells of a mix"
        assert [each for each in titles if each.startswith("model_0: ")], "checkpoints"
        captions = browser.execute_script("return [...document.querySelectorAll('figcaption')].map(t => t.textContent)")
        assert {"The mix of search", "Half-way, by accuracy", "The best trial so far", "Per class on test"} <= set(
            captions
        )
        broken = browser.execute_script("return [...document.images].filter(i => !i.naturalWidth).length")
        assert browser.execute_script("return document.images.length") > 0
        assert broken == 0
