"""Samples without labels: of what a model will meet, for what can be told of it without knowing the right answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mixopt.data import open_split
from mixopt.data.source import Reading
from mixopt.listener import Listener
from mixopt.values.samples import Encoding, Samples


def open_unlabelled(
    path: Path,
    name: str,
    encoding: Encoding,
    *,
    classnames: Sequence[str] | None,
    cache: Path,
    reading: Reading | None = None,
    listener: Listener | None = None,
) -> Samples:
    """Open samples without labels: any file or folder that `mixopt.data.open_split` opens, without what labels it.

    Labels that are there are not read, and images of a folder are taken however deep they lie in it. All labels are 0,
    so that losses, and every metric, mean nothing: predictions, confidences and logits, of all of the model's classes,
    do not depend on them. The order is random and fixed.

    Args:
        path: A file or folder that one of `mixopt.data.SOURCES` opens.
        name: What the samples are called.
        encoding: Makes arrays of records.
        classnames: The model's classes in the order of its logits, which predictions are of.
        cache: The cache directory.
        reading: How the source is to be read; what it says of labels and classes does not matter.
        listener: Told about notices, and progress while decoding.

    Raises:
        DataError: Missing, empty or not decodable.
    """
    unread = replace(reading or Reading(), labelled=False, holdout=None, codes={})
    return open_split(path, name, encoding, classnames=classnames, cache=cache, reading=unread, listener=listener)
