"""Embedded demo: a tiny language model and a corpus with two domains, each also in two parts.

``tools/build_demo.py`` makes the files.
"""

from pathlib import Path
from typing import Final

DEMO_DIR: Final = Path(__file__).resolve().parent
CORPUS_DIR: Final = DEMO_DIR / "corpus"
MODEL_DIR: Final = DEMO_DIR / "model"
FORGET_CORPUS: Final = CORPUS_DIR / "forget.jsonl"
RETAIN_CORPUS: Final = CORPUS_DIR / "retain.jsonl"
CORPORA: Final = {
    "demo:forget": FORGET_CORPUS,
    "demo:retain": RETAIN_CORPUS,
    "demo:forget_first": CORPUS_DIR / "forget_first.jsonl.gz",
    "demo:forget_second": CORPUS_DIR / "forget_second.jsonl.gz",
    "demo:near": CORPUS_DIR / "near.jsonl.gz",
    "demo:retain_rest": CORPUS_DIR / "retain_rest.jsonl.gz",
}
QUESTIONS: Final = CORPUS_DIR / "questions.jsonl"
QUESTIONS_SECOND: Final = CORPUS_DIR / "questions_second.jsonl"
PROBING_TEXTS: Final = CORPUS_DIR / "probing.jsonl"
CARD: Final = DEMO_DIR / "card.json"

__all__ = [
    "CARD",
    "CORPORA",
    "CORPUS_DIR",
    "DEMO_DIR",
    "FORGET_CORPUS",
    "MODEL_DIR",
    "PROBING_TEXTS",
    "QUESTIONS",
    "QUESTIONS_SECOND",
    "RETAIN_CORPUS",
]
