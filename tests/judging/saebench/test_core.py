"""The SAE that SAEBench core gets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens.registry import get_sae_class

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.evaluations.core import TRAINED_L0
from saelens_adaptive_ortho.judging import running
from saelens_adaptive_ortho.judging.saebench.core import trained_l0, with_skip_in_decode


def build(architecture: str) -> torch.nn.Module:
    sae_class, cfg_class = get_sae_class(architecture)
    fields = {"d_out": 6, "apply_b_dec_to_input": False} if "transcoder" in architecture else {}
    torch.manual_seed(0)
    sae = sae_class(cfg_class(d_in=6, d_sae=12, **fields))
    for parameter in sae.parameters():
        parameter.data.normal_()
    return sae


def test_decode_adds_the_skip_connection() -> None:
    sae, x = build("jumprelu_skip_transcoder"), torch.randn(2, 3, 6)
    expected, without = sae(x), sae.decode(sae.encode(x))
    assert not torch.allclose(expected, without)
    whole = with_skip_in_decode(sae)
    torch.testing.assert_close(whole.decode(whole.encode(x)), expected)


def test_sae_without_skip_connection_is_unchanged() -> None:
    sae = build("jumprelu")
    assert with_skip_in_decode(sae) is sae
    assert "decode" not in vars(sae)


def test_l0_in_training_is_read_from_the_files_of_the_sae() -> None:
    sae = build("jumprelu")
    assert trained_l0(sae) == {}
    sae.cfg.metadata.training_architecture_details = {"k": 16}
    assert trained_l0(sae) == {TRAINED_L0: 16.0}
    sae.cfg.metadata.l0 = 15.9
    assert trained_l0(sae) == {TRAINED_L0: 15.9}
    sae.cfg.metadata.l0 = "unknown"
    assert trained_l0(sae) == {TRAINED_L0: 16.0}
    assert trained_l0(build("topk")) == {TRAINED_L0: 100.0}


def test_too_few_contexts_are_refused_beforehand() -> None:
    with pytest.raises(ConfigError, match=r"evals\.core\.n_contexts=8: is less than"):
        running.check_evals_runnable({"core": {"n_contexts": 8}})
    corpus: Any = SimpleNamespace(domain="forget", held_out=torch.zeros(15, 4))
    with pytest.raises(ConfigError, match="the forget corpus has 15 held-out contexts, fewer"):
        running.check_evals_corpora({"core": {}, "subspace": {}}, [corpus])
    running.check_evals_corpora({"core": {"batch_size_prompts": 15}}, [corpus])
