"""The copy of a sweep at a URL: what goes there, what comes back, and what is damaged or fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from saelens_adaptive_ortho.checksums import sealed
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.files import atomic_directory
from saelens_adaptive_ortho.manifests import (
    Manifest,
    Point,
    Unit,
    read_manifest,
    unit_folder,
    write_manifest,
)
from saelens_adaptive_ortho.settings import dump_yaml
from saelens_adaptive_ortho.sweeps import starting
from saelens_adaptive_ortho.sweeps.attempts import Attempt, Attempts
from saelens_adaptive_ortho.sweeps.axes import build_sweep
from saelens_adaptive_ortho.sweeps.copying import (
    RECORD,
    Copied,
    Copy,
    CopyError,
    bring_back,
    checked_url,
    copy_unit,
)
from saelens_adaptive_ortho.sweeps.drivers.contract import OK, REFUSED
from saelens_adaptive_ortho.sweeps.folder import is_whole, settings_digest
from saelens_adaptive_ortho.sweeps.packing import pack
from saelens_adaptive_ortho.sweeps.working import Kept, do_unit
from tests.damages import damages
from tests.sweeps.test_sweep_command import InThisProcess
from tests.tiny import BATCH

URL = "shelf://sweeps/alpha"
ROOT = "/sweeps/alpha"
FILES = {
    "config.yaml": b"lr: 1\n",
    "report.html": b"<p>report</p>",
    "results/summary.json": b"{}",
    "seed0/sae/cfg.json": b"{}" * 50,
    "seed0/sae/sae_weights.safetensors": bytes(range(256)) * 8,
    "seed0/cache/cfg.json": b"a variant may have the name cache",
}
OTHERS = (".lock", "cache/text.bin", "seed0/checkpoints/step_1/w.bin", "wandb/run/log", "r/.x.tmp")


class Shelf(MemoryFileSystem):
    """A store in memory that counts what is sent, and may refuse it."""

    protocol = "shelf"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False
    sent: ClassVar[list[str]] = []
    refused: ClassVar[list[str]] = []  # endings of names that it does not take
    error: ClassVar[BaseException] = PermissionError("Forbidden")

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return super()._strip_protocol(str(path).removeprefix("shelf://"))

    def put_file(self, lpath: Any, rpath: Any, *args: Any, **kwargs: Any) -> None:
        name = str(rpath).removeprefix(f"{ROOT}/")
        if any(name.endswith(end) for end in self.refused):
            raise self.error
        super().put_file(lpath, rpath, *args, **kwargs)
        self.sent.append(name)

    @classmethod
    def clear(cls) -> None:
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.sent.clear()
        cls.refused.clear()
        cls.error = PermissionError("Forbidden")

    @classmethod
    def content(cls, name: str) -> bytes:
        return cls.store[f"{ROOT}/{name}"].getvalue()


fsspec.register_implementation("shelf", Shelf, clobber=True)


@pytest.fixture
def shelf() -> Iterator[type[Shelf]]:
    Shelf.clear()
    yield Shelf
    Shelf.clear()


def make_unit(name: str = "u", **settings: Any) -> Unit:
    points = [Point(name, "sae", "", 0, {"seed": 0})]
    return Unit(name, f"unit {name}", points, {"evals": {}, **settings}, 0, 1.0)


UNIT = make_unit()
OF_UNIT = f"units/{UNIT.name}"


def write_whole(sweep: Path, unit: Unit = UNIT) -> None:
    """Write a unit that is whole, and files of it that are not copied."""
    root = unit_folder(sweep, unit.name)
    for name, content in FILES.items():
        if not name.startswith("seed0/sae"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
    with atomic_directory(root / "seed0/sae", "", sums=True) as folder:
        for name, content in FILES.items():
            if name.startswith("seed0/sae"):
                (folder / Path(name).name).write_bytes(content)
    for name in OTHERS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not copied")
    attempts = Attempts(sweep)
    attempt = attempts.claim(unit.name, "first", settings_digest(unit))
    assert attempt is not None
    attempts.end(attempt, "whole", status=OK, seconds=12.5)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def newest(sweep: Path, unit: Unit = UNIT) -> Attempt:
    found = Attempts(sweep).newest_of(unit.name)
    assert found is not None
    return found


@pytest.fixture
def there(tmp_path: Path, shelf: type[Shelf]) -> Path:
    """A sweep's folder with a unit that is whole, and that the store has."""
    write_whole(tmp_path / "there")
    assert copy_unit(URL, tmp_path / "there", UNIT, 12.5) == len(FILES) + 1  # and SHA256SUMS
    return tmp_path / "there"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """An empty folder."""
    return tmp_path / "here"


def fetch(here: Path, said: list[str] | None = None, unit: Unit = UNIT) -> Attempt | None:
    return bring_back(Copy(URL), here, unit, [].append if said is None else said.append)


# --------------------------------------------------------------------- units


def test_unit_goes_and_comes_back_to_the_bit(there: Path, here: Path, shelf: type[Shelf]) -> None:
    said: list[str] = []
    assert fetch(here, said) == newest(here)
    assert said == []
    before = contents(unit_folder(there, "u"))
    assert contents(unit_folder(here, "u")) == {
        name: content for name, content in before.items() if name not in OTHERS
    }
    assert FILES.keys() <= contents(unit_folder(here, "u")).keys()
    attempt = newest(here)
    assert (attempt.ended, attempt.seconds, attempt.status) == ("whole", 12.5, OK)
    assert is_whole(here, UNIT, attempt)
    assert shelf.sent[-1] == f"{OF_UNIT}/{RECORD}"
    assert not list(here.rglob("*.tmp"))


def test_nothing_is_sent_twice(there: Path, here: Path, shelf: type[Shelf]) -> None:
    shelf.sent.clear()
    assert copy_unit(URL, there, UNIT, 99.0) == 0
    fetch(here)
    assert copy_unit(URL, here, UNIT, 99.0) == 0
    assert shelf.sent == []
    (unit_folder(here, "u") / "report.html").write_text("another one")
    (unit_folder(here, "u") / "results" / "new.json").write_text("{}")
    assert copy_unit(URL, here, UNIT, 99.0) == 2
    # Before and after it, the record says whether the copy is complete.
    names = ["report.html", "results/new.json"]
    assert shelf.sent == [f"{OF_UNIT}/{name}" for name in (RECORD, *names, RECORD)]


def test_other_settings_of_the_same_saes_come_back_and_are_judged(there: Path, here: Path) -> None:
    more, said = make_unit(lr_end=1), list[str]()
    attempt = fetch(here, said, more)
    assert attempt is not None
    assert attempt.ended == "stopped"
    assert "judged with other settings" in said[0]
    assert not is_whole(here, more, newest(here))
    assert contents(unit_folder(here, "u")).keys() >= FILES.keys()
    # What is here already may be newer.
    assert fetch(here, said, make_unit(lr_end=2)) is None


def test_only_what_is_free_comes_back(there: Path, here: Path) -> None:
    assert fetch(here, unit=make_unit("v")) is None
    assert Attempts(here).claim("u", "theirs") is not None
    assert fetch(here) is None
    assert not unit_folder(here, "u").exists()


def test_damaged_unit_in_the_folder_is_replaced(there: Path) -> None:
    root = unit_folder(there, "u")
    (root / "seed0/sae/cfg.json").write_text("damaged")
    (root / "mine.txt").write_text("of the user")
    assert not is_whole(there, UNIT, newest(there))
    assert fetch(there) is not None
    assert is_whole(there, UNIT, newest(there))
    assert (root / "mine.txt").read_text() == "of the user"


NAMES = ("seed0/sae/sae_weights.safetensors", "seed0/sae/SHA256SUMS", "report.html", RECORD)
WAYS = ("emptied", "cut in half", "cut at the end", "bit in the middle", "missing", "foreign")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_damaged_object_is_noticed_and_mended(
    there: Path, here: Path, tmp_path: Path, shelf: type[Shelf], name: str, way: str
) -> None:
    objects, said = shelf.store, list[str]()
    path = f"{ROOT}/{OF_UNIT}/{name}"
    if way == "missing":
        del objects[path]
    else:
        file = tmp_path / "object"
        file.write_bytes(objects[path].getvalue())
        if way == "foreign":  # the object of another unit
            write_whole(tmp_path / "other", make_unit("v"))
            Copy(URL).put(tmp_path / "other", make_unit("v"), 1.0)
            other = objects[f"{ROOT}/units/v/{name}"].getvalue()
            file.write_bytes(other if other != file.read_bytes() else b"of somebody else")
        else:
            damages(file)[way]()
        objects[path].seek(0)
        objects[path].truncate()
        objects[path].write(file.read_bytes())
    found = fetch(here, said)
    assert found is None or found.ended == "failed"
    assert not unit_folder(here, "u").exists()
    unsaid = name == RECORD and way == "missing"  # a unit without a record was never copied
    assert [URL in line and "is not used" in line for line in said] == [True] * (not unsaid)
    # The unit is done again, with the same bits, and the copy is mended.
    write_whole(here)
    assert copy_unit(URL, here, UNIT, 12.5) > 0
    third = tmp_path / "third"
    found = fetch(third)
    assert found is not None
    assert is_whole(third, UNIT, found)
    assert contents(unit_folder(third, "u"))["report.html"] == FILES["report.html"]


@pytest.mark.parametrize("name", ["../x", "/x", "seed0/../../x", "a//b", "", ".", "..\\x"])
def test_record_names_no_file_outside(there: Path, here: Path, tmp_path: Path, name: str) -> None:
    entry = {"sha256": "0" * 64, "size": 1}
    record = Copied("u", settings_digest(UNIT), 1.0, {name: entry})
    Copy(URL)._write_record(record)
    said: list[str] = []
    assert fetch(here, said) is None
    assert "is not used" in said[0]


@pytest.mark.parametrize("error", [PermissionError("Forbidden"), KeyboardInterrupt()])
def test_interrupted_copy_is_not_used_and_goes_on(
    there: Path, here: Path, tmp_path: Path, shelf: type[Shelf], error: BaseException
) -> None:
    shelf.clear()
    shelf.refused.append("cfg.json")
    shelf.error = error
    kind = CopyError if isinstance(error, Exception) else type(error)
    with pytest.raises(kind) as raised:
        copy_unit(URL, there, UNIT, 12.5)
    if kind is CopyError:
        for words in (URL, "cfg.json", "Forbidden", "intact", str(unit_folder(there, "u"))):
            assert words in str(raised.value)
    before, said = [n for n in shelf.sent if not n.endswith(RECORD)], list[str]()
    assert before
    assert fetch(here, said) is None
    assert "it was interrupted" in said[0]
    shelf.refused.clear()
    shelf.sent.clear()
    copy_unit(URL, there, UNIT, 12.5)
    assert not set(before) & set(shelf.sent)
    assert fetch(here) is not None


def test_store_that_takes_nothing_any_more_forgets_nothing(
    there: Path, here: Path, shelf: type[Shelf]
) -> None:
    (unit_folder(there, "u") / "report.html").write_text("another one")
    shelf.refused.append("")
    with pytest.raises(CopyError):
        copy_unit(URL, there, UNIT, 12.5)
    assert fetch(here) is not None
    assert (unit_folder(here, "u") / "report.html").read_bytes() == FILES["report.html"]


def test_interrupted_fetch_leaves_nothing(
    there: Path, here: Path, shelf: type[Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    get = shelf.get_file

    def stop(self: Shelf, rpath: str, *args: Any, **kwargs: Any) -> None:
        if rpath.endswith("summary.json"):
            raise KeyboardInterrupt
        get(self, rpath, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(shelf, "get_file", stop)
        with pytest.raises(KeyboardInterrupt):
            fetch(here)
    assert newest(here).ended == "stopped"
    assert not list((here / "units").glob("*"))
    assert fetch(here) is not None


def test_store_that_does_not_answer_stops_the_fetch(
    there: Path, here: Path, shelf: type[Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(5, "Connection reset by peer")

    monkeypatch.setattr(shelf, "get_file", fail)
    with pytest.raises(CopyError, match="Connection reset"):
        fetch(here)
    assert not unit_folder(here, "u").exists()
    monkeypatch.setattr(shelf, "cat_file", fail)
    with pytest.raises(CopyError, match="copy_to='shelf://sweeps/alpha'"):
        fetch(here)


# ------------------------------------------------------------------- the URL


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("runs/copy", "must be a URL"),
        (3, "must be a URL"),
        ("", "must be a URL"),
        ("://x", "must be a URL"),
        ("file://copy", "must be absolute"),
        ("sftp://me:secret@host/x", "sftp://me:***@host/x"),
    ],
)
def test_value_that_is_no_url_is_refused(value: object, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        checked_url(value)
    assert words in str(error.value)
    assert str(error.value).startswith("copy_to=")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", ["s3://b/x", "hf://datasets/me/x@main/y", "file:///x", "file://~"])
def test_url_is_taken(url: str) -> None:
    assert checked_url(url) == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nobody://x", "Protocol not known: nobody"),
        ("dropbox://x/y", "Install what this protocol needs"),
        ("file:///proc/nothing/here", "file:///proc/nothing/here"),
        ("file://{folder}/copy", "is in the folder of the sweep itself"),
        ("file://{folder}/..", "is around the folder of the sweep itself"),
        ("http://127.0.0.1:9/x", "http://127.0.0.1:9/x"),
    ],
)
def test_url_that_cannot_work_is_refused(tmp_path: Path, url: str, words: str) -> None:
    url = url.format(folder=tmp_path)
    with pytest.raises(ConfigError) as error:
        Copy(url).check(tmp_path)
    assert words in str(error.value)
    assert "copy_to=" in str(error.value)
    assert not (tmp_path / "copy").exists()


def test_check_leaves_nothing_behind(tmp_path: Path, shelf: type[Shelf]) -> None:
    Copy(URL).check(tmp_path / "sweep")
    assert len(shelf.sent) == 1
    assert not shelf.store
    Copy(f"file://{tmp_path}/copy").check(tmp_path / "sweep")
    assert not list((tmp_path / "copy").iterdir())


def test_store_that_deletes_nothing_will_do(
    tmp_path: Path, shelf: type[Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(shelf, "rm", refuse)
    Copy(URL).check(tmp_path)


@pytest.mark.parametrize("broken", ["find", "cat_file", "put_file"])
def test_store_that_lacks_a_right_is_refused(
    tmp_path: Path, shelf: type[Shelf], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(shelf, broken, refuse)
    with pytest.raises(ConfigError, match=r"PermissionError: Forbidden.*the rights"):
        Copy(URL).check(tmp_path)


# ----------------------------------------------------------------- the sweep


Tree = Callable[..., dict[str, Any]]


# One unit of two SAEs, which learn little.
SHORT = {
    "training_tokens": 4 * BATCH,
    "sweep": {"sae.ortho_alpha": [0, 1], "seed": [0]},
    "evals": {"subspace": {"n_contexts": 4}},
}


@pytest.fixture
def tree(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> Tree:
    def make(**changes: Any) -> dict[str, Any]:
        full = {**SHORT, "output_path": str(tmp_path / "sweep"), "copy_to": URL, **changes}
        return settings(**full)

    return make


def test_copy_is_no_part_of_what_is_learned(tree: Tree, tmp_path: Path) -> None:
    copied, alone = pack(build_sweep(tree())), pack(build_sweep(tree(copy_to=None)))
    assert (copied.copy_to, alone.copy_to) == (URL, "")
    assert copied.units == alone.units
    write_manifest(tmp_path, copied)
    assert read_manifest(tmp_path) == copied
    with pytest.raises(ConfigError, match="copy_to='alpha'"):
        build_sweep(tree(copy_to="alpha"))


def test_manifest_of_an_earlier_version_has_no_copy(tmp_path: Path) -> None:
    manifest = Manifest("alpha", {"seed": [0]}, [UNIT], ".")
    write_manifest(tmp_path, manifest)
    file = tmp_path / "sweep.json"
    found = json.loads(file.read_text())
    del found["copy_to"], found["sha256"]
    file.write_text(sealed(found))
    assert read_manifest(tmp_path) == manifest


@pytest.fixture
def sweep(tree: Tree, tmp_path: Path, shelf: type[Shelf]) -> Manifest:
    """Two units of one SAE each; the manifest is in the sweep's folder."""
    manifest = pack(build_sweep(tree(saes_per_unit=1)))
    write_manifest(tmp_path / "sweep", manifest)
    return manifest


def test_unit_that_cannot_be_copied_has_failed_and_is_only_copied_then(
    sweep: Manifest, tmp_path: Path, shelf: type[Shelf], no_report: None, capsys: Any
) -> None:
    folder, kept = tmp_path / "sweep", Kept()
    first, second = sweep.units
    shelf.refused.append(f"{first.name}/config.yaml")
    assert do_unit(folder, first.name, "a", kept) == REFUSED
    assert do_unit(folder, second.name, "a", kept) == OK
    attempt = newest(folder, first)
    assert attempt.ended == "failed"
    assert URL in attempt.reason
    assert f"The SAEs are intact in {unit_folder(folder, first.name)}" in attempt.reason
    assert is_whole(folder, second, newest(folder, second))
    shelf.refused.clear()
    before = contents(unit_folder(folder, first.name) / "seed0")
    capsys.readouterr()
    assert do_unit(folder, first.name, "b", kept) == OK
    assert "every variant is trained already" in capsys.readouterr().out
    assert contents(unit_folder(folder, first.name) / "seed0") == before
    for unit in sweep.units:
        assert fetch(tmp_path / "new", unit=unit) is not None
        assert is_whole(tmp_path / "new", unit, newest(tmp_path / "new", unit))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> InThisProcess:
    """A driver in this process, and a report that takes no time."""

    def write_report(sweep: Path, console: Any) -> Path:
        for name in ("report.html", "summary.json"):
            (sweep / name).write_text("{}")
        return sweep / "report.html"

    found = InThisProcess()
    monkeypatch.setattr(starting, "find_driver", lambda on, needs: found)
    monkeypatch.setattr(starting, "write_report", write_report)
    return found


def run(tree: dict[str, Any], tmp_path: Path) -> int:
    path = tmp_path / "alpha.yaml"
    path.write_text(dump_yaml(tree))
    return main(["sweep", str(path)])


@pytest.fixture(scope="module")
def bare(settings: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all units of the sweep, done without a copy."""
    root = tmp_path_factory.mktemp("bare")
    manifest, kept = pack(build_sweep(settings(**SHORT, output_path=str(root)))), Kept()
    write_manifest(root, manifest)
    with pytest.MonkeyPatch.context() as patched:
        from saelens_adaptive_ortho.report import summary
        from saelens_adaptive_ortho.report.page import run as page

        patched.setattr(page, "write_report", lambda root: root / "report.html")
        patched.setattr(summary, "write_summary", lambda root: None)
        for unit in manifest.units:
            assert do_unit(root, unit.name, "a", kept) == OK
    return root


@pytest.fixture
def finished(bare: Path, tmp_path: Path) -> Path:
    shutil.copytree(bare, tmp_path / "sweep")
    return tmp_path / "sweep"


def test_sweep_comes_back_to_an_empty_folder(
    finished: Path,
    tree: Tree,
    tmp_path: Path,
    driver: InThisProcess,
    shelf: type[Shelf],
    no_report: None,
    capsys: Any,
) -> None:
    # Units of before are copied at the end.
    assert run(tree(), tmp_path) == 0
    assert driver.done == ["closed"]
    assert f"Copy: {URL} (1 unit of before is new there)" in capsys.readouterr().out
    copied = {name.removeprefix(f"{ROOT}/") for name in shelf.store}
    assert {"sweep.json", "sweep.yaml", "report.html", "summary.json"} <= copied
    before = {n: c for n, c in contents(finished / "units").items() if "/cache/" not in n}
    units = read_manifest(finished).units
    shutil.rmtree(finished)
    shelf.sent.clear()
    # Another machine would make smaller units; those of the copy are kept.
    assert run(tree(saes_per_unit=1), tmp_path) == 0
    assert driver.done == ["closed"] * 2
    said = capsys.readouterr().out
    assert said.count("back from the copy") == 1
    assert "1 unit is finished." in said
    assert contents(finished / "units") == before
    assert read_manifest(finished).units == units
    assert not [name for name in shelf.sent if name.startswith("units/")]
    # A sweep that has grown does what is new, and judges anew what is judged in another way.
    shutil.rmtree(finished)
    grown = tree(evals={"subspace": {"n_contexts": 2}})
    driver.done.clear()
    assert run(grown, tmp_path) == 0
    assert sorted(driver.done) == sorted([*(unit.name for unit in units), "closed"])
    for unit in units:
        log = (finished / "logs" / f"{unit.name}.log").read_text()
        assert "every variant is trained already" in log
    weights = {n: c for n, c in before.items() if n.endswith(".safetensors")}
    now = contents(finished / "units")
    assert weights
    assert {name: now[name] for name in weights} == weights


def test_damaged_manifest_of_the_copy_is_said(
    finished: Path,
    tree: Tree,
    tmp_path: Path,
    driver: InThisProcess,
    shelf: type[Shelf],
    no_report: None,
    capsys: Any,
) -> None:
    assert run(tree(), tmp_path) == 0
    shelf.store[f"{ROOT}/sweep.json"].truncate(100)
    shutil.rmtree(finished)
    capsys.readouterr()
    assert run(tree(), tmp_path) == 0
    out = capsys.readouterr().out
    assert "The copy of the sweep is not used" in out
    assert out.count("back from the copy") == 1


def test_url_that_fails_at_the_end_is_said(
    finished: Path,
    tree: Tree,
    tmp_path: Path,
    driver: InThisProcess,
    shelf: type[Shelf],
    no_report: None,
    capsys: Any,
) -> None:
    shelf.refused.append(".safetensors")
    assert run(tree(), tmp_path) == 1
    out = capsys.readouterr().out
    assert "Forbidden" in out
    assert "Units that are finished are intact. The same command copies them." in out
    shelf.refused.clear()
    assert run(tree(), tmp_path) == 0
    assert driver.done == ["closed"] * 2


def test_url_that_cannot_work_stops_the_sweep_at_once(
    tree: Tree, tmp_path: Path, driver: InThisProcess, shelf: type[Shelf], capsys: Any
) -> None:
    shelf.refused.append("probe")
    assert run(tree(), tmp_path) == 2
    assert "copy_to='shelf://sweeps/alpha'" in capsys.readouterr().err
    assert driver.done == []
    assert not list((tmp_path / "sweep").glob("*"))


@pytest.mark.slow
def test_real_commands_copy_and_bring_back(tree: Tree, tmp_path: Path) -> None:
    folder, copy = tmp_path / "sweep", tmp_path / "copy"
    path = tmp_path / "alpha.yaml"
    path.write_text(dump_yaml(tree(saes_per_unit=1, copy_to=f"file://{copy}")))
    program = [sys.executable, "-m", "saelens_adaptive_ortho"]
    command = [*program, "sweep", str(path), "--on", "local:2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def sweep() -> str:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "All 2 units are finished." in sweep()
    before = {n: c for n, c in contents(folder / "units").items() if "/cache/" not in n}
    assert before.items() <= contents(copy / "units").items()
    assert (copy / "report.html").read_bytes() == (folder / "report.html").read_bytes()
    unit = read_manifest(folder).units[0].name
    shutil.rmtree(folder)
    next((copy / "units" / unit).rglob("*.safetensors")).write_bytes(b"damaged")
    said = sweep()
    assert said.count("back from the copy") == 1
    assert f"its copy at file://{copy} is not used" in said
    after = contents(folder / "units")
    for name, content in before.items():
        if name.endswith(".safetensors"):
            assert after[name] == content
    assert contents(copy / "units").keys() == {
        *before,
        *(f"{unit.name}/{RECORD}" for unit in read_manifest(folder).units),
    }
