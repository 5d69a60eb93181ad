"""The guide: pages that come with the package, and the option reference, shown where the commands are."""

from __future__ import annotations

import os
import shutil
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from mixopt.cli.screen import Screen
from mixopt.errors import MixoptError, unknown

OPTIONS = "options"
# In the order in which a stranger reads them; a page that is not named here comes after these.
ORDER = (
    "files",
    "checkpoints",
    "folders",
    "search",
    "report",
    "surface",
    "recipes",
    "several-splits",
    "performance",
    "workers",
    "trackers",
    "trust",
    "python",
    OPTIONS,
    "architecture",
)
LINE = 100  # columns that are still easy to read


def guide(
    screen: Screen,
    topic: Annotated[str | None, typer.Argument(help="The page to show; without it, all are listed.")] = None,
) -> None:
    """Read the guide: how a search works, every recipe, every option, and how the code is laid out."""
    if screen.as_json:
        screen.json({name: page(name) for name in ([topic] if topic else topics())})
        return
    if topic is None:
        width = max(map(len, topics()))
        for name in topics():
            screen.out(f"{name:{width}}  {page(name).partition(chr(10))[0].removeprefix('# ')}")
        screen.out("Next: mixopt guide TOPIC")
        return
    show_page(page(topic))


def topics() -> list[str]:
    """Every page, in reading order."""
    found = {entry.name.removesuffix(".md") for entry in _folder().iterdir() if entry.name.endswith(".md")}
    return sorted(found | {OPTIONS}, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def page(topic: str) -> str:
    """A page as Markdown.

    Raises:
        MixoptError: There is none of that name.
    """
    if topic not in topics():
        raise MixoptError(unknown("topic", topic, topics()))
    if topic == OPTIONS:
        from mixopt.spec.reference import option_reference

        return option_reference()
    return (_folder() / f"{topic}.md").read_text(encoding="utf-8")


def show_page(text: str) -> None:
    """Print a page: typeset and paged on a terminal, elsewhere as the Markdown that it is."""
    console = Console()
    if not console.is_terminal:
        typer.echo(text.rstrip())
        return
    os.environ.setdefault("LESS", "FRX")  # as git does: colours, and no paging of what fits
    console = Console(width=min(LINE, shutil.get_terminal_size().columns))
    with console.pager(styles=True):
        console.print(Markdown(text))


def _folder() -> Traversable:
    return files("mixopt") / "guide"
