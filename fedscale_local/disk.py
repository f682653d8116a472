"""The file system, as everything uses it that has to survive: whole files and whole lines, on disk when it says so.

Whatever fails is a StorageError that names the file and the system's reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedscale_local.errors import StorageError


def write(path: Path, content: bytes) -> None:
    """Write all of it or nothing: under a temporary name, flushed, renamed, the folder flushed."""
    _replace(path, content, flushed=True)
    flush(path.parent)


def put(path: Path, content: bytes) -> None:
    """Write all of it or nothing, if this process is killed; `flush` of file and folder puts it on disk."""
    _replace(path, content, flushed=False)


def rename(path: Path, new: Path) -> None:
    """Give a file another name; `flush` of the folder puts that on disk."""
    with _named(path):
        os.replace(path, new)


def append(path: Path, line: bytes) -> None:
    """Add to the end of a file; `flush` puts it on disk."""
    with _named(path):
        _put(path, line, os.O_APPEND, flushed=False)


def write_part(path: Path, content: bytes, begins: bool) -> None:
    """Write the next bytes of a file under its temporary name; `finish` makes it the file."""
    with _named(path):
        _put(_temporary(path), content, os.O_TRUNC if begins else os.O_APPEND, flushed=False)


def finish(path: Path) -> None:
    """Give a file that was written in parts its name, on disk."""
    flush(_temporary(path))
    with _named(path):
        os.replace(_temporary(path), path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Put on disk what a file holds; for a folder, which names it holds."""
    with _named(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder in one that is there, on disk; nothing if there is one."""
    with _named(path):
        if not path.is_dir():
            os.mkdir(path)
            flush(path.parent)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    with _named(path), suppress(FileNotFoundError):
        os.unlink(path)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _replace(path: Path, content: bytes, flushed: bool) -> None:
    temporary = _temporary(path)
    with _named(path):
        try:
            _put(temporary, content, os.O_TRUNC, flushed)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):  # half a file is of no use, and its room may be needed
                os.unlink(temporary)
            raise


def _put(path: Path, content: bytes, how: int, flushed: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if flushed:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(path, error.strerror or str(error)) from error
