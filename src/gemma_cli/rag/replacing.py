"""Files that are replaced whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replaced_file(target: Path, *, keep_mode: bool = False) -> Iterator[IO[bytes]]:
    """A file to write beside `target`, which takes its place when the block ends well, flushed to the disk; else
    `target` is as it was. Readable by its owner alone, or with `keep_mode` as the one before it. Raises OSError."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep_mode and target.exists():
            shutil.copymode(target, name)
        Path(name).replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):  # it has taken the target's place
            Path(name).unlink()
