"""Embedded demo: a tiny language model and a corpus with two domains.

``tools/build_demo.py`` makes the files.
"""

from pathlib import Path
from typing import Final

DEMO_DIR: Final = Path(__file__).resolve().parent
MODEL_DIR: Final = DEMO_DIR / "model"
FORGET_CORPUS: Final = DEMO_DIR / "corpus" / "forget.jsonl"
RETAIN_CORPUS: Final = DEMO_DIR / "corpus" / "retain.jsonl"
QUESTIONS: Final = DEMO_DIR / "corpus" / "questions.jsonl"
PROBING_TEXTS: Final = DEMO_DIR / "corpus" / "probing.jsonl"
CARD: Final = DEMO_DIR / "card.json"

__all__ = [
    "CARD",
    "DEMO_DIR",
    "FORGET_CORPUS",
    "MODEL_DIR",
    "PROBING_TEXTS",
    "QUESTIONS",
    "RETAIN_CORPUS",
]
