"""The scheduler of a Dask cluster: whether it answers, and a client of it."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client, Security, rpc

from mixopt.errors import SpecError

# Seconds within which it must answer, and for it to be left.
ANSWERS, _LEAVING = 5, 2


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A scheduler's client, while the block is open.

    Raises:
        SpecError: No scheduler answers there.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it logs is told in words here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of versions, which are compared when workers join
        try:
            asyncio.run(_ask(address))  # as a client alone waits for ever where something listens and says nothing
            client = Client(address, timeout=ANSWERS, set_as_default=False, name="mixopt")
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise SpecError(
                f"--scheduler {address}: no Dask scheduler answers there within {ANSWERS} s"
                f"{f' ({error})' if str(error) else ''}; start one with `dask scheduler`, which prints its address"
            ) from error
    try:
        yield client
    finally:
        client.close(timeout=_LEAVING)


async def _ask(address: str) -> None:
    """Ask a scheduler who it is.

    Raises:
        OSError: It does not answer.
    """
    async with rpc(address, timeout=ANSWERS, connection_args=Security().get_connection_args("client")) as scheduler:
        await asyncio.wait_for(scheduler.identity(n_workers=0), ANSWERS)
