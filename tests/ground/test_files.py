"""Failed writes keep the earlier content and say so."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from saelens_adaptive_ortho.checksums import breaks_seal
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.files import (
    StorageError,
    atomic_directory,
    check_new_file,
    check_new_folder,
    check_writable,
    made_once,
    read_cached,
    recover_directory,
    remove_litter,
    remove_litter_of,
    remove_scratch,
    scratch_folder,
    user_path,
    without_home,
    write_json,
    write_sealed,
    write_text_atomic,
)
from saelens_adaptive_ortho.locks import run_lock, write_lock
from saelens_adaptive_ortho.training.lockstep import list_checkpoints
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, Prepared


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes, like on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def fill(folder: Path, text: str) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "file.txt").write_text(text)


# ------------------------------------------------------------------------- paths


def test_user_path_is_that_of_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    for plain in ("a b", "a=b", "run[0]*", "./~", "x/~/y"):
        assert user_path(plain) == Path(plain)
    assert user_path("~/x") == tmp_path / "me" / "x"
    assert user_path("~nobody-such/x") == Path("~nobody-such/x")
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "x").touch()
    assert user_path("~/x") == Path("~/x")  # there is no other
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "x").touch()
    assert user_path("~/x") == tmp_path / "me" / "x"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("/home/me", "~"),
        ("/home/me/a/b", "~/a/b"),
        ("see /home/me/a, '/home/me/b'", "see ~/a, '~/b'"),
        ("file:///home/me/a", "file://~/a"),
        ("in /home/me.", "in ~."),
        ("/home/me2/a", "/home/me2/a"),
        ("/home/me.old/a", "/home/me.old/a"),
        ("/mnt/home/me/a", "/mnt/home/me/a"),
        ("s3://home/me/a", "s3://home/me/a"),
        ("~/home/me", "~/home/me"),
    ],
)
def test_home_folder_is_hidden(monkeypatch: pytest.MonkeyPatch, text: str, hidden: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert without_home(text) == hidden
    assert without_home({"a": [text, 1], "b": (None, text)}) == {
        "a": [hidden, 1],
        "b": [None, hidden],
    }
    for home in ("/", "/elsewhere"):
        monkeypatch.setenv("HOME", home)
        assert without_home(text) == text


# --------------------------------------------------------------- atomic folders


def written(target: Path, text: str) -> Path:
    with atomic_directory(target, "Nothing.") as temporary:
        fill(temporary, text)
    return target


def test_killed_swap_is_undone(tmp_path: Path) -> None:
    """The process died between the two renames, so nothing has the name of the target."""
    target = written(tmp_path / "target", "old")
    target.rename(tmp_path / ".target.old")
    (tmp_path / ".target.tmp").mkdir()
    recover_directory(target)
    assert (target / "inner" / "file.txt").read_text() == "old"
    assert names(tmp_path) == ["target"]


def test_litter_of_a_finished_swap_is_removed(tmp_path: Path) -> None:
    target = written(tmp_path / "target", "new")
    (tmp_path / ".target.old").mkdir()
    fill(tmp_path / ".target.old", "old")
    (tmp_path / ".target.lock").touch()
    recover_directory(target)
    assert (target / "inner" / "file.txt").read_text() == "new"
    assert names(tmp_path) == ["target"]


def test_folder_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".target.tmp").mkdir()
    with write_lock(tmp_path / "target"):
        recover_directory(tmp_path / "target")
        assert names(tmp_path) == [".target.lock", ".target.tmp"]
    recover_directory(tmp_path / "target")
    assert names(tmp_path) == []


def test_only_our_temporary_files_are_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = [".notes.tmp", "x.json.tmp", f"x.{'a' * 32}.tmp", f".x.{'a' * 31}.tmp", ".lock"]
    for name in theirs:
        (tmp_path / name).touch()
    (tmp_path / f".folder.{'a' * 32}.tmp").mkdir()
    before = names(tmp_path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: None)  # as if the process was killed before
        write_text_atomic(tmp_path / "x.json", "half")
    assert len(names(tmp_path)) == len(before) + 1
    remove_litter([tmp_path, tmp_path / "nowhere"])
    assert names(tmp_path) == before


def test_only_temporary_files_of_one_file_are_its_litter(tmp_path: Path) -> None:
    ours = f".a[0].json.{'a' * 32}.tmp"
    theirs = [f".a0.json.{'a' * 32}.tmp", f".b.a[0].json.{'a' * 32}.tmp", ".a[0].json.tmp"]
    for name in (ours, *theirs):
        (tmp_path / name).touch()
    remove_litter_of(tmp_path / "a[0].json")
    remove_litter_of(tmp_path / "nowhere" / "a[0].json")
    assert names(tmp_path) == sorted(theirs)


def test_unfinished_file_is_removed_as_a_folder_is(tmp_path: Path) -> None:
    for name in (".pool.tmp", ".pool.lock", "pool"):
        (tmp_path / name).touch()
    recover_directory(tmp_path / "pool")
    assert names(tmp_path) == ["pool"]


def test_scratch_folder_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    place = tmp_path / "cache"
    theirs = ["adaptive-ortho-notes", f"adaptive-ortho-{'a' * 32}.txt"]
    with scratch_folder(place) as alive:
        (alive / "file").touch()
        child = os.fork()
        if child == 0:
            with scratch_folder(place) as folder:
                (folder / "file").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        (place / f".adaptive-ortho-{'b' * 32}.lock").touch()  # killed before it had a folder
        for name in theirs:
            (place / name).touch()
        assert len(names(place)) == 2 + 2 + 1 + 2
        remove_scratch(place)
        assert names(place) == sorted([f".{alive.name}.lock", alive.name, *theirs])
        assert names(alive) == ["file"]
    assert names(place) == sorted(theirs)


def test_failure_removes_the_scratch_folder(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), scratch_folder(tmp_path) as folder:
        folder.write_text("a folder is no file")
    assert names(tmp_path) == []


def test_look_for_a_writable_folder_leaves_nothing_to_be_killed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise SystemExit

    monkeypatch.setattr(os, "unlink", killed)
    check_writable("output_path", tmp_path)
    assert names(tmp_path) == []


def test_failed_second_rename_gives_the_old_folder_its_name_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = written(tmp_path / "target", "old"), Path.rename

    def full(self: Path, to: Path) -> Path:
        if self.name == ".target.tmp":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", full)
    with (
        pytest.raises(StorageError, match="Nothing is lost"),
        atomic_directory(target, "Nothing is lost.") as temporary,
    ):
        fill(temporary, "new")
    assert (target / "inner" / "file.txt").read_text() == "old"
    assert names(tmp_path) == ["target"]


def test_folder_is_written_atomically_over_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a" / "target"
    for text in ("old", "new"):
        with atomic_directory(target, "Nothing.") as temporary:
            fill(temporary, text)
            assert not (target / "inner").exists() or text == "new"
    assert (target / "inner" / "file.txt").read_text() == "new"
    assert names(target.parent) == ["target"]


@pytest.mark.parametrize(
    "error", [ValueError("mine"), KeyboardInterrupt(), RuntimeError("mine"), OSError("mine")]
)
def test_failure_keeps_old_folder_and_removes_new(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "target"
    with atomic_directory(target, "Nothing.") as temporary:
        fill(temporary, "old")

    def overwrite() -> None:
        with atomic_directory(target, "Nothing.") as temporary:
            fill(temporary, "half of the new")
            raise error

    with pytest.raises(type(error)) as caught:
        overwrite()
    assert caught.value is error
    assert (target / "inner" / "file.txt").read_text() == "old"
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_full_disk_error_names_path_cause_and_survivor(tmp_path: Path, error: Exception) -> None:
    target = tmp_path / "target"

    def write() -> None:
        with atomic_directory(target, "step_8 is intact."):
            raise error

    with pytest.raises(StorageError) as caught:
        write()
    for part in (str(target), str(error), "step_8 is intact.", "Free some space"):
        assert part in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("writer", ["text", "safetensors", "torch"])
def test_refused_write_is_recognised(tmp_path: Path, writer: str) -> None:
    writers: dict[str, Callable[[Path], Any]] = {
        "text": lambda path: path.write_text("x" * 100_000),
        "safetensors": lambda path: save_file({"x": torch.zeros(100_000)}, path),
        "torch": lambda path: torch.save({"x": torch.zeros(100_000)}, path),
    }

    def write() -> None:
        with atomic_directory(tmp_path / "target", "Nothing.") as temporary:
            writers[writer](temporary / "file")

    with no_file_over(4096), pytest.raises(StorageError, match="target could not be written"):
        write()
    assert names(tmp_path) == []


def test_json_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with no_file_over(4096), pytest.raises(StorageError, match=r"value\.json could not be written"):
        write_json(path, {"a": "x" * 100_000})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert names(tmp_path) == ["value.json"]


def test_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output_path='.*file/run': cannot be written"):
        check_writable("output_path", tmp_path / "file" / "run")


@pytest.mark.parametrize("url", ["s3://bucket/runs", "memory://", "file:///runs"])
def test_url_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (url, Path(url)):  # a path has lost a slash
        with pytest.raises(ConfigError, match=r"--out='\w+://.*': is a URL.*copy_to"):
            check_writable("--out", value)
    with pytest.raises(ConfigError, match="is a URL"):
        check_new_folder("DEST", Path(url))
    assert names(tmp_path) == []
    check_writable("--out", tmp_path / "C:")
    check_writable("--out", Path("runs:2"))


def test_only_a_new_file_is_accepted(tmp_path: Path) -> None:
    check_new_file("--save", tmp_path / "new" / "file")
    (tmp_path / "file").write_text("")
    for target, rule in (
        (tmp_path, f"'{tmp_path}': is a folder. Name a file in it"),
        (tmp_path / "file", f"'{tmp_path}/file': exists. Name a new file"),
        (tmp_path / "file" / "below", f"'{tmp_path}/file/below': cannot be written"),
    ):
        with pytest.raises(ConfigError, match=f"--save={rule}"):
            check_new_file("--save", target)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc")
@pytest.mark.parametrize("target", ["/proc/x", "file/x", "file/x/y"])
def test_folder_that_cannot_be_written_fails_at_once(tmp_path: Path, target: str) -> None:
    """The lock of a folder in /proc can never be made, and no process holds it."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"could not be written \(.*Choose another folder"),
        atomic_directory(tmp_path / target, "Nothing was written."),
    ):
        raise AssertionError("the folder was made")
    with (
        pytest.raises(ConfigError, match="cannot be locked"),
        run_lock("out", Path("/proc/x"), "command"),
    ):
        raise AssertionError("the lock was made")


# ------------------------------------------------------------------ checkpoints


# The first limit fails at the weights, the second one at the optimiser state.
@pytest.mark.parametrize("limit", [4_096, 25_000])
def test_full_disk_keeps_previous_checkpoint_usable(
    prepared: Prepared, make_config: Callable[..., Any], tmp_path: Path, limit: int
) -> None:
    folder = tmp_path / "checkpoints"
    variants = {"adaptive": {}}

    def runner() -> AdaptiveOrthoRunner:
        cfg = make_config(checkpoint_path=str(folder), n_checkpoints=2)
        return AdaptiveOrthoRunner(cfg, variants, prepared)

    failing = runner()
    save, saves = failing.trainer.save_checkpoint, []

    def save_second_without_space() -> Path | None:
        saves.append(failing.trainer.state.n_training_steps)
        if len(saves) == 1:
            return save()
        with no_file_over(limit):
            return save()

    failing.trainer.save_checkpoint = save_second_without_space  # type: ignore[method-assign]
    with pytest.raises(StorageError, match=r"step_000000016.*step_000000008 is intact"):
        failing.trainer.fit()
    assert saves == [8, 16]
    assert names(folder) == ["step_000000008"]

    resumed = runner()
    resumed.trainer.load_checkpoint(list_checkpoints(folder)[-1])
    resumed.trainer.fit()
    whole = AdaptiveOrthoRunner(make_config(), variants, prepared)
    whole.trainer.fit()
    ours, theirs = resumed.saes["adaptive"].state_dict(), whole.saes["adaptive"].state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("limit", [100, 2_000, 16_384])
def test_command_line_reports_full_disk_and_resumes(
    write_config: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    limit: int,
) -> None:
    config = str(write_config(variants={"baseline": {"ortho_mode": "off"}}, evals=[]))
    with no_file_over(limit):
        assert main(["compare", config]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "could not be written" in message
    assert str(tmp_path / "run") in message
    assert main(["compare", config]) == 0
    assert (tmp_path / "run" / "seed0" / "baseline" / "sae_weights.safetensors").is_file()


def test_failed_write_keeps_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text_atomic(tmp_path / "x.json", "old")

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("text", ["", '{"a": [1', "\x00\x00", '{"a": 1, "sha256": "0"}'])
def test_damaged_cache_file_is_none_and_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "kept.json"
    assert read_cached(file) is None
    file.write_text(text)
    with pytest.warns(UserWarning, match=f"^{file} is damaged .*It is not used"):
        assert read_cached(file) is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [{"a": [1]}, [True, False], {"a": "x" * 64}, {}])
def test_cache_file_without_a_seal_is_read(tmp_path: Path, value: Any) -> None:
    file = tmp_path / "kept.json"
    file.write_text(json.dumps(value))
    assert read_cached(file) == value


def is_whole(data: bytes) -> bool:
    try:
        return not breaks_seal(text := data.decode(), json.loads(text))
    except ValueError:
        return False


def test_every_flipped_bit_of_a_sealed_file_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    value = {"größe": [1, 2.5, None], "b": {"c": "x"}, "digest": "0" * 64}
    write_sealed(file, value)
    assert read_cached(file) == value
    assert json.loads(file.read_text())["größe"] == value["größe"]
    text = file.read_bytes()
    assert is_whole(text)
    for bit in range(8 * len(text)):
        data = bytearray(text)
        data[bit // 8] ^= 1 << bit % 8
        assert not is_whole(bytes(data)), (bit // 8, bit % 8)
    for size in range(len(text)):
        assert not is_whole(text[:size]), size
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_sealed(file, {"a": float("nan")})


def test_of_several_that_need_a_file_one_makes_it(tmp_path: Path) -> None:
    file, made, found = tmp_path / "new" / "file", list[int](), list[str]()
    looked = threading.Barrier(3)

    def need(number: int) -> None:
        first = True

        def read() -> str | None:
            nonlocal first
            text = file.read_text() if file.exists() else None
            if first:  # nobody makes it before all have looked
                first = False
                looked.wait(60)
            return text

        with made_once(file, read) as text:
            if text is None:
                made.append(number)
                file.write_text("made")
            found.append(text or "made")

    threads = [threading.Thread(target=need, args=[i]) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == ["made"] * 3
    assert len(made) == 1
    assert list(file.parent.iterdir()) == [file]


def test_if_the_one_that_makes_a_file_fails_the_next_one_makes_it(tmp_path: Path) -> None:
    file = tmp_path / "file"

    def fail() -> None:
        with made_once(file, lambda: None) as text:
            assert text is None
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert list(tmp_path.iterdir()) == []
    with made_once(file, lambda: None) as text:
        assert text is None


def test_litter_of_a_place_that_others_use_is_old(tmp_path: Path) -> None:
    young, old = (tmp_path / f".a.json.{letter * 32}.tmp" for letter in "ab")
    for file in (young, old):
        file.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    remove_litter([tmp_path], older=3600.0)
    assert list(tmp_path.iterdir()) == [young]
    remove_litter([tmp_path])
    assert list(tmp_path.iterdir()) == []
