"""What finished SAEs are judged on: one set of options for every command that judges SAEs.

Nothing here loads torch, so the command line can show its help at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import PositiveInt

from saelens_adaptive_ortho.settings import check_fields


@dataclass(frozen=True, kw_only=True)
class JudgingOptions:
    """What SAEs are judged on; what is not given comes from the SAEs' own records.

    The name of a field is the name of its option: ``context_size`` is ``--context-size``.

    Args:
        saes: a directory that SAELens saved, or release:sae_id of its registry; NAME= before it
            names the SAE in tables.
        out: folder for everything that is written.
        model: language model: a hub name or a directory; by default the one of the SAEs.
        forget: text of the forget corpus: a file, a directory, or a hub data set, as id or
            id:configuration; by default the one of the training.
        retain: text of the retain corpus, likewise. With one of the two alone, nothing is
            measured that compares corpora.
        context_size: tokens in a context; by default that of the SAEs.
        device: of the model and the SAEs.
        dtype: of the model and the SAEs.
    """

    saes: list[str] = field(default_factory=list, metadata={"positional": "SAE"})
    out: Path = field(metadata={"metavar": "FOLDER"})
    model: str | None = None
    forget: str | None = field(default=None, metadata={"metavar": "CORPUS"})
    retain: str | None = field(default=None, metadata={"metavar": "CORPUS"})
    context_size: PositiveInt | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_fields(self, prefix="--")
