"""A typer command from what it does: its own parameters, the flags of a study, and those that every command has."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature, getdoc, signature
from typing import Annotated, Any

import typer

from mixopt.cli.exits import run_command
from mixopt.cli.flags import LONG, flags_of, options_of
from mixopt.cli.screen import Screen
from mixopt.spec.option import RUN

QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="No notices and progress.", rich_help_panel=RUN)]
AS_JSON = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=RUN)]


def make_command(work: Callable[..., None], resume: str = "") -> Callable[..., None]:
    """The function that typer makes a command of.

    Args:
        work: What the command does, called like it. Its first parameter is the `Screen`; where it takes
            ``**options``, the command has the flags of `mixopt.spec` that are its own, and the work gets what they
            say. Its other parameters are annotated for typer.
        resume: What an interrupt leaves, and how to go on.
    """
    name = work.__name__
    _, *own = signature(work, eval_str=True).parameters.values()
    takes_options = bool(own) and own[-1].kind is Parameter.VAR_KEYWORD
    own = own[:-1] if takes_options else own
    parameters = [*own, *(flags_of(name) if takes_options else []), *_every_command(name)]

    def command(**given: Any) -> None:
        quiet, as_json = given.pop("quiet"), given.pop("as_json")
        given.pop("help_all", None)
        mine = {each.name: given.pop(each.name) for each in own}
        options = options_of(given, name) if takes_options else {}

        def with_screen(screen: Screen) -> None:
            work(screen, **mine, **options)

        run_command(with_screen, quiet, as_json, resume)

    command.__name__, command.__doc__ = name, getdoc(work)
    by_name = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters]
    command.__dict__["__signature__"] = Signature(by_name)
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def _every_command(name: str) -> list[Parameter]:
    shared = [
        Parameter("quiet", Parameter.KEYWORD_ONLY, default=False, annotation=QUIET),
        Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=AS_JSON),
    ]
    if name in LONG:
        flag = typer.Option(
            "--help-all", help="Show every option.", rich_help_panel=RUN, is_eager=True, callback=_show_all
        )
        shared.append(Parameter("help_all", Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, flag]))
    return shared


def _show_all(context: typer.Context, wanted: bool) -> None:
    """Print the help with nothing hidden, and stop."""
    if not wanted:
        return
    hidden = [each for each in context.command.params if getattr(each, "hidden", False)]
    for each in hidden:
        each.hidden = False  # type: ignore[attr-defined]
    try:
        typer.echo(context.get_help())
    finally:
        for each in hidden:
            each.hidden = True  # type: ignore[attr-defined]
    raise typer.Exit
