"""Options that say who computes: this process, or workers of this machine or of others."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

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
        BeforeValidator(checks.scheduler_of),
        Option(
            "Score in the workers of a Dask cluster, which see this machine's files under the same paths: the address "
            "that `dask scheduler` prints. Needs the extra dask.",
            WORKERS,
            RUNS,
            metavar="ADDRESS",
        ),
    ] = None
    mixed_devices: Annotated[
        bool,
        Option(
            "Take workers of --scheduler whose GPUs or processors are of another kind than this machine's. Scores then "
            "differ in their last bits by who computed them, and are cached apart.",
            WORKERS,
            RUNS,
        ),
    ] = False
    verbose: Annotated[bool, Option("Say every ten seconds what each worker has done.", WORKERS, RUNS)] = False
