"""Progress in a terminal, and in a file."""

from __future__ import annotations

import io
import sys

import pytest
from tqdm.auto import tqdm

from saelens_adaptive_ortho import progress as module
from saelens_adaptive_ortho.progress import calm_bars, progress


class Stream(io.StringIO):
    """Stands in for stderr."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def stderr(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> Stream:
    """A new stderr. Not a fixture: pytest replaces stderr between a fixture and its test."""
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = stderr(monkeypatch, terminal=True)
    assert list(progress(range(3), "Counting")) == [0, 1, 2]
    assert terminal.getvalue() == ""


def test_long_work_has_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = stderr(monkeypatch, terminal=True)
    monkeypatch.setattr(module, "DELAY", 0.0)
    assert list(progress(range(3), "Counting")) == [0, 1, 2]
    assert "\rCounting:" in terminal.getvalue()


def test_a_file_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    log = stderr(monkeypatch, terminal=False)
    monkeypatch.setattr(module, "EVERY", 0.0)
    with progress(desc="Counting", total=3, unit=" sheep") as bar:
        for number in range(3):
            bar.set_postfix_str(f"sheep {number}", refresh=False)
            bar.update()
            tqdm.write("a message of others", file=log)
    lines = [line for line in log.getvalue().splitlines() if line != "a message of others"]
    assert "\r" not in log.getvalue()
    assert "\x1b" not in log.getvalue()
    assert [line.split(" in ")[0] for line in lines] == [
        f"Counting: {n} of 3 sheep" for n in range(4)
    ]
    assert lines[2].endswith("left, sheep 1")


def test_bars_within_bars_are_lines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    log = stderr(monkeypatch, terminal=False)
    monkeypatch.setattr(module, "EVERY", 0.0)
    for _ in progress(range(2), "Outer"):
        for _ in progress(range(2), "Inner"):
            pass
    lines = log.getvalue().splitlines()
    assert {line.split(":")[0] for line in lines} == {"Outer", "Inner"}
    assert "\x1b" not in log.getvalue()


def test_a_file_gets_nothing_from_work_that_is_not_long(monkeypatch: pytest.MonkeyPatch) -> None:
    log = stderr(monkeypatch, terminal=False)
    assert list(progress(iter("ab"), "Spelling", unit=" letters")) == ["a", "b"]
    with calm_bars():
        assert list(tqdm("ab", desc="of another library")) == ["a", "b"]
    assert log.getvalue() == ""


def test_bars_of_others_follow_the_rule_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = stderr(monkeypatch, terminal=True)
    with calm_bars():
        list(tqdm("ab", desc="calm"))
        assert terminal.getvalue() == ""
        monkeypatch.setattr(module, "DELAY", 0.0)
        list(progress("ab", "ours", leave=True))
    list(tqdm("ab", desc="theirs"))
    assert "calm" not in terminal.getvalue()
    assert "ours: 100%" in terminal.getvalue()
    assert "theirs: 100%" in terminal.getvalue()


def test_lines_are_written_although_bars_of_others_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    log = stderr(monkeypatch, terminal=False)
    monkeypatch.setattr(module, "EVERY", 0.0)
    with calm_bars():
        list(progress("ab", "Spelling"))
    assert "Spelling: 1 of 2" in log.getvalue()
