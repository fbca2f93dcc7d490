"""Files that are never half-written."""

from __future__ import annotations

import itertools
import os
import re
import stat
from pathlib import Path

_counter = itertools.count()


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Put `data` at `path`: at any moment, power cuts included, the file there is the old one or the new one.

    Written aside in the same folder, flushed to the disk, renamed. An existing file's permissions are kept, a
    link is followed, and what a killed process left aside is removed. On OSError the old file is untouched.
    """
    target = Path(os.path.realpath(path))
    _remove_orphans(target)
    aside = target.with_name(f".{target.name}.{os.getpid()}-{next(_counter)}.tmp")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(descriptor, "wb") as file:
            if target.exists():
                os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove_orphans(target: Path) -> None:
    pattern = re.compile(re.escape(f".{target.name}.") + r"(\d+)-\d+\.tmp")
    for sibling in target.parent.iterdir():
        match = pattern.fullmatch(sibling.name)
        if match and not _alive(int(match[1])):
            sibling.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
