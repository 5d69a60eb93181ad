"""How a command ends: exit codes, and errors as one message."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import typer

from mixopt.cli.screen import Screen
from mixopt.errors import MixoptError
from mixopt.files import ENVIRONMENT
from mixopt.memory import available_memory, gigabytes, is_out_of_memory

EXIT_BAD_INPUT = 2
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141


def run_command(work: Callable[[Screen], None], quiet: bool, as_json: bool, resume: str = "") -> None:
    """Do a command's work; errors become one message and an exit code, a bug keeps its traceback (code 1).

    Args:
        work: What the command does with the screen that it gets.
        quiet: Print errors and the result only.
        as_json: Print the result as JSON.
        resume: What an interrupt leaves, and how to go on.

    Raises:
        typer.Exit: With the exit code, where it is not 0.
    """
    screen = Screen(quiet=quiet, as_json=as_json)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        work(screen)
    except MixoptError as error:
        screen.error(str(error))
        raise typer.Exit(EXIT_BAD_INPUT) from error
    except BrokenPipeError as error:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_PIPE_CLOSED) from error
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            raise
        screen.error(
            f"{error.filename or 'a file'}: {error.strerror}; check that it is there, its permissions, the disk"
        )
        raise typer.Exit(EXIT_BAD_INPUT) from error
    except (MemoryError, RuntimeError, ImportError) as error:
        if not is_out_of_memory(error):
            raise
        screen.error(
            f"not enough memory{_detail(error)}; {gigabytes(available_memory())} can be had now. Use fewer "
            f"--ingredients, a smaller --batch-size, or a machine with more{resume}"
        )
        raise typer.Exit(EXIT_BAD_INPUT) from error
    except KeyboardInterrupt as error:
        screen.error(f"interrupted{resume}")
        raise typer.Exit(EXIT_INTERRUPTED) from error
    finally:
        signal.signal(signal.SIGTERM, previous)


def _detail(error: BaseException) -> str:
    text = str(error).strip().splitlines()[:1]
    return f" ({text[0]})" if text else ""
