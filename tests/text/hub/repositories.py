"""The content of the local hub: tiny repositories under the real ids."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from saelens_adaptive_ortho.demo import FORGET_CORPUS, MODEL_DIR

PYTHIA = "EleutherAI/pythia-70m-deduped"
GATED = "cais/wmdp-bio-forget-corpus"
WIKITEXTS = ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
D_IN, D_SAE = 96, 128
HOOK = "blocks.3.hook_resid_post"


def texts(corpus: Path, n: int) -> list[str]:
    return [json.loads(line)["text"] for line in corpus.read_text().splitlines()[:n]]


class Repositories:
    """Writes the folders that a :class:`server.Hub` serves."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def dataset(self, repo: str, card: dict[str, Any] | None = None) -> Path:
        folder = self.root / "datasets" / repo
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(f"---\n{json.dumps(card or {})}\n---\n# {repo}\n")
        return folder

    def parquet(self, repo: str, configs: dict[str, dict[str, pa.Table]]) -> Path:
        """A data set of parquet files named ``CONFIG/SPLIT-00000-of-00001.parquet``."""
        parts: list[dict[str, Any]] = [
            {
                "config_name": config,
                "data_files": [{"split": s, "path": f"{config}/{s}-*"} for s in splits],
            }
            for config, splits in configs.items()
        ]
        folder = self.dataset(repo, {"configs": parts})
        for config, splits in configs.items():
            (folder / config).mkdir(exist_ok=True)
            for split, table in splits.items():
                pq.write_table(table, folder / config / f"{split}-00000-of-00001.parquet")
        return folder

    def text(self, repo: str, corpus: Path, n: int, *configs: str) -> Path:
        """``n`` training texts and 50 test texts, the same in every configuration."""
        table = pa.table({"text": texts(corpus, n)})
        splits = {"train": table, "test": table.slice(0, 50)}
        return self.parquet(repo, dict.fromkeys(configs or ["data"], splits))

    def jsonl(self, repo: str, corpus: Path, n: int, name: str) -> Path:
        folder = self.dataset(repo)
        rows = [{"title": "", "abstract": "", "text": text, "doi": ""} for text in texts(corpus, n)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    def model(self, repo: str) -> Path:
        return Path(shutil.copytree(MODEL_DIR, self.root / "models" / repo))

    def sae(self, repo: str, name: str, cfg: dict[str, Any]) -> Path:
        """An SAE in SAELens's format with the given ``cfg.json`` and random weights."""
        folder = self.root / "models" / repo / name
        folder.mkdir(parents=True)
        (folder / "cfg.json").write_text(json.dumps(cfg))
        generator = torch.Generator().manual_seed(0)
        W_dec = torch.randn(D_SAE, D_IN, generator=generator)
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        weights = {
            "W_enc": W_dec.T.contiguous(),
            "W_dec": W_dec,
            "b_enc": torch.zeros(D_SAE),
            "b_dec": torch.zeros(D_IN),
        }
        save_file(weights, folder / "sae_weights.safetensors")
        return folder


# The files of ctigges/pythia-70m-deduped__res-sm_processed date from SAELens 2.
OLD_CFG = {
    "model_name": "pythia-70m-deduped",
    "hook_point": HOOK,
    "hook_point_layer": 3,
    "hook_point_head_index": None,
    "dataset_path": "EleutherAI/the_pile_deduplicated",
    "context_size": 128,
    "d_in": D_IN,
    "d_sae": D_SAE,
    "dtype": "float32",
    "device": "cpu",
    "prepend_bos": True,
}


def questions(subject: str, n: int = 8) -> pa.Table:
    return pa.table(
        {
            "question": [f"Question {i} of {subject}?" for i in range(n)],
            "choices": [["cave", "valley", "marsh", "forest"]] * n,
            "answer": [i % 4 for i in range(n)],
        }
    )


def news(n: int) -> pa.Table:
    """Texts in four classes, with one subject for each class."""
    rows = islice(zip(cycle(range(4)), texts(FORGET_CORPUS, n), strict=False), n)
    labels, bodies = zip(*rows, strict=True)
    openings = ["The colour", "The habitat", "Many books", "The dish"]
    opened = [f"{openings[label]} {body}" for label, body in zip(labels, bodies, strict=True)]
    return pa.table({"text": opened, "label": labels})


def run_client(script: str, repositories: Path, out: Path, *arguments: str) -> dict[str, Any]:
    """Run a script of this folder and return the records of its steps."""
    command = [sys.executable, Path(__file__).with_name(script), repositories, out, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "steps.json").read_text())
