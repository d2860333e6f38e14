"""A random SAE on the demo's model, and the demo's corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAE
from torch import Tensor

from saelens_adaptive_ortho.judging.contract import EvalContext, Workbench
from saelens_adaptive_ortho.text.corpora import CorpusConfig, Tokenisation, tokenise_corpus
from saelens_adaptive_ortho.text.models import load_language_model

HOOK = "blocks.2.hook_resid_post"
D_IN, D_SAE = 96, 64
TEXTS = {d: CorpusConfig(path=f"demo:{d}", max_documents=400) for d in ("forget", "retain")}
QUICK = {
    "counts": [4],
    "strengths": [2.0, 8.0],
    "n_select_contexts": 8,
    "n_choose_contexts": 4,
    "n_contexts": 8,
    "batch_size_prompts": 8,
    "replicates": 20,
    "ranks": [2],
}


@pytest.fixture(scope="module")
def demo_model() -> Any:
    return load_language_model("demo:model")


@pytest.fixture(scope="module")
def corpora(demo_model: Any) -> list[Any]:
    how = Tokenisation(context_size=48, holdout_fraction=0.2, holdout_contexts=16)
    return [tokenise_corpus(c, d, demo_model.tokenizer, how, 32) for d, c in TEXTS.items()]


def build_sae(seed: int = 0, hook: str = HOOK, threshold: float = 1.5, **changes: Any) -> SAE[Any]:
    """A random SAE; with the default threshold it is about as sparse as a trained one."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=generator), dim=1)
    cfg = JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE, **changes)
    sae = JumpReLUSAE(cfg)
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
        sae.threshold.fill_(threshold)
    sae.cfg.metadata.hook_name = hook
    sae.cfg.metadata.model_name = "demo:model"
    return sae


@pytest.fixture(scope="module")
def thresholds(demo_model: Any, corpora: list[Any]) -> Tensor:
    """Thresholds: half of the latents fire on 1/200 of the retain tokens, the others on 1/3."""
    texts = corpora[1].train.long()
    with torch.no_grad():
        cache = demo_model.run_with_cache(texts, names_filter=HOOK, prepend_bos=False)[1]
        before = cache[HOOK].flatten(0, 1) @ build_sae().W_enc
    return torch.cat([before[:, :32].quantile(0.995, 0), before[:, 32:].quantile(0.67, 0)])


@pytest.fixture
def context(demo_model: Any, corpora: list[Any], thresholds: Tensor, tmp_path: Path) -> EvalContext:
    def load() -> SAE[Any]:
        sae = build_sae()
        with torch.no_grad():
            sae.threshold.copy_(thresholds)
        return sae

    bench = Workbench(demo_model, "demo:model", corpora, TEXTS, 48, tmp_path / "cache")
    return EvalContext(bench, load, "random", 0, tmp_path / "raw")
