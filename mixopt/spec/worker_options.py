"""Options that say who computes: this process, workers of this machine, or those of others."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from mixopt.spec import checks
from mixopt.spec.option import RUNS, WORKERS, Option
from mixopt.spec.options import Fields


class WorkerFields(Fields):
    """The fields of `mixopt.StudySpec`, those about workers last."""

    workers: Annotated[
        str | None,
        BeforeValidator(checks.workers_of),
        Option(
            "Score in so many processes of this machine, with one thread each, or auto: one for each GPU, or where "
            "there is none for each core. Without it, this process scores. The result is the same for any number.",
            WORKERS,
            RUNS,
            common=True,
            metavar="N|auto",
        ),
    ] = None
    scheduler: Annotated[
        str | None,
        Field(min_length=1),
        Option(
            "Score on the workers of a Dask scheduler, such as tcp://head:8786, that see the same files (extra: dask).",
            WORKERS,
            RUNS,
            metavar="ADDRESS",
        ),
    ] = None
    mixed_devices: Annotated[
        bool,
        Option(
            "Let workers on different kinds of devices score, whose last bits differ; such scores are kept apart in "
            "the cache.",
            WORKERS,
            RUNS,
        ),
    ] = False
    verbose: Annotated[bool, Option("Say every ten seconds what each worker has done.", WORKERS, RUNS)] = False
