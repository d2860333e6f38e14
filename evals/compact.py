"""Read and write the results of a study: one file with one run per line, as JSON.

Each run has its own line, so that a change of one run changes one line. A driver adds a line when
a run is finished. If the driver is killed while it writes, the last line is incomplete: a reader
ignores it, and the next write replaces it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.files import StorageError, write_text_atomic


def read_runs(path: str | Path) -> list[dict[str, Any]]:
    """Return the runs of a file in order; an empty list if there is no file.

    An incomplete last line is ignored.

    Raises:
        ConfigError: the file cannot be read, or another line is not a JSON object. The message
            names the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise reject("results", str(path), f"cannot be read ({error}).") from error
    lines = text.split("\n")
    runs = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            run = json.loads(line)
            if not isinstance(run, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            if number == len(lines):  # no newline after it, so the line is incomplete
                break
            raise reject(
                "results", f"{path}:{number}", f"is not a result ({error}); delete this line."
            ) from error
        runs.append(run)
    return runs


def append_run(path: str | Path, run: Mapping[str, Any]) -> None:
    """Append a run as one line and flush it to disk.

    An incomplete last line is removed first.

    Raises:
        StorageError: the line could not be written; the lines before it are intact.
    """
    path = Path(path)
    line = f"{_line(run)}\n".encode("ascii")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _end_last_line(path)
        # Without a buffer the line is a single write at the end of the file.
        with open(path, "ab", buffering=0) as handle:
            handle.write(line)
            os.fsync(handle.fileno())
    except OSError as error:
        raise StorageError(
            f"{path} could not be written ({error.strerror}). The runs in it are intact. Free some "
            "space and run the same command again."
        ) from error


def write_runs(path: str | Path, runs: Iterable[Mapping[str, Any]]) -> Path:
    """Replace a file by these runs, atomically, and return its path."""
    return write_text_atomic(path, "".join(f"{_line(run)}\n" for run in runs))


def _line(run: Mapping[str, Any]) -> str:
    return json.dumps(run, allow_nan=False)  # ASCII, so that an incomplete line is valid text


def _end_last_line(path: Path) -> None:
    """Make the file end with a complete line.

    An incomplete last line is removed. If only its newline is missing, the newline is added.
    """
    if not path.is_file():
        return
    with open(path, "rb+") as handle:
        content = handle.read()
        if not content or content.endswith(b"\n"):
            return
        start = content.rfind(b"\n") + 1
        try:
            json.loads(content[start:])
        except ValueError:
            handle.truncate(start)
        else:
            handle.write(b"\n")
