"""One process at a time in a run folder, and a message that says which one is there."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from saelens_adaptive_ortho import locks
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.files import StorageError, atomic_directory
from saelens_adaptive_ortho.locks import run_lock, write_lock

# Without the package's own __init__, which would load torch.
HOLD = f"""
import sys, types
from pathlib import Path

package = types.ModuleType("saelens_adaptive_ortho")
package.__path__ = [{str(Path(locks.__file__).parent)!r}]
sys.modules[package.__name__] = package
from saelens_adaptive_ortho.locks import run_lock

with run_lock("output_path", Path(sys.argv[1]), "adaptive-ortho compare"):
    print("held", flush=True)
    sys.stdin.read()  # until the test kills this process, or has ended itself
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "RUN_PATIENCE", 0.01)


@pytest.fixture
def hold() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """A function that starts a process which holds the lock of a path."""
    started = []

    def start(path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_second_process_is_told_who_runs_there(
    tmp_path: Path, hold: Callable[[Path], subprocess.Popen[str]]
) -> None:
    holder = hold(tmp_path)
    with pytest.raises(ConfigError) as caught, run_lock("output_path", tmp_path, "x"):
        raise AssertionError("the lock was given twice")
    message = str(caught.value)
    assert message.startswith(f"output_path={str(tmp_path)!r}: is in use: `adaptive-ortho compare`")
    assert f"as process {holder.pid} on {socket.gethostname()} since 20" in message
    assert "Wait until it ends, or choose another place." in message
    # A killed process holds nothing, and what it left is removed.
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", ".lock.json"]
    with run_lock("output_path", tmp_path, "x"):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_commands_of_one_folder_exclude_each_other(
    write_config: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, root = str(write_config()), tmp_path / "run"
    checkpoints = tmp_path / "checkpoints"
    root.mkdir()
    checkpoints.mkdir()
    at = ["--set", f"checkpoint_path={checkpoints}"]
    sae = tmp_path / "sae"
    for command, place, field in (
        (["compare", config], root, "output_path"),
        (["compare", config, "--fresh"], root, "output_path"),
        (["train", config, *at], root, "output_path"),
        (["train", config, *at], checkpoints, "checkpoint_path"),
        (["synth", "--world", "cluster", "--json", str(sae)], sae, "--json"),
    ):
        with run_lock("x", place, "the first"):
            assert main(command) == 2
        error = capsys.readouterr().err
        assert f"{field}={str(place)!r}: is in use: `the first` runs there" in error, command
    assert [p.name for p in root.iterdir()] == []


def test_failure_inside_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="of the work"), run_lock("out", tmp_path, "x"):
        raise TimeoutError("of the work")
    with run_lock("out", tmp_path, "x"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_file_is_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    with run_lock("--json", file, "x"):
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            ".result.json.lock",
            ".result.json.lock.json",
        ]
        with run_lock("--json", tmp_path / "other.json", "x"):
            pass
        with pytest.raises(ConfigError, match="is in use"), run_lock("--json", file, "x"):
            pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_unreadable_holder_is_still_a_lock(tmp_path: Path, text: str) -> None:
    with run_lock("out", tmp_path, "x"):
        (tmp_path / ".lock.json").write_text(text)
        message = "is in use: another process runs there. Wait"
        with pytest.raises(ConfigError, match=message), run_lock("out", tmp_path, "x"):
            pass


def test_removed_folder_does_not_matter(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with run_lock("out", folder, "x"):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    assert not folder.exists()


def test_file_system_without_locks_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with (
        pytest.warns(UserWarning, match=r"\.lock cannot be locked .*no second process writes"),
        run_lock("out", tmp_path, "x"),
    ):
        pass


def test_lock_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    message = r"out='.*': cannot be locked \(Permission denied\)"
    with pytest.raises(ConfigError, match=message), run_lock("out", tmp_path, "x"):
        pass


# ------------------------------------------------------------------------ writing


def test_writers_of_a_folder_wait_for_each_other(tmp_path: Path) -> None:
    target, order = tmp_path / "target", []

    def write(name: str) -> None:
        with atomic_directory(target, "Nothing.") as temporary:
            order.append(f"{name} begins")
            (temporary / name).write_text(name)
            time.sleep(0.1)
            order.append(f"{name} ends")

    writers = [threading.Thread(target=write, args=(name,)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    first, last = order[0][0], order[-1][0]
    assert order == [f"{first} begins", f"{first} ends", f"{last} begins", f"{last} ends"]
    assert [p.name for p in tmp_path.iterdir()] == ["target"]
    assert [p.name for p in target.iterdir()] == [last]


def test_writer_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saelens_adaptive_ortho.files.WRITE_PATIENCE", 0.05)
    target = tmp_path / "target"
    message = r"target could not be written: another process has been writing it .* Old stays\."
    with (
        write_lock(target),
        pytest.raises(StorageError, match=message),
        atomic_directory(target, "Old stays."),
    ):
        pass
