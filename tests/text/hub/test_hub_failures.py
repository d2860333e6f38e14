"""Failures of the hub give one message with field, value, kind and remedy, without long waits."""

from __future__ import annotations

from typing import Any

import aiohttp
import httpx
import pytest
import requests
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled

from saelens_adaptive_ortho.demo import FORGET_CORPUS, RETAIN_CORPUS
from saelens_adaptive_ortho.text import hub
from tests.text.hub.failures import CACHED, GATED_CORPUS, GATED_MODEL, GATED_SAE, RELEASE
from tests.text.hub.repositories import OLD_CFG, PYTHIA, WIKITEXTS, Repositories, run_client

FORGET = "ortho_corpora.forget.path"
NEXT = f"{RELEASE}:blocks.4.hook_resid_post"
ACCESS, NETWORK, AGAIN = "`hf auth login`", "Check the connection", "Try again"

MESSAGES = {
    "missing model": ("model_name='EleutherAI/pythia-410m': the model is not on the hub", "name"),
    "misspelt model": (
        "model_name='pythia-70m-dedupd': TransformerLens knows no such model",
        "Nearest: pythia-70m-deduped,",
    ),
    "missing corpus": (f"{FORGET}='cais/wmpd': the data set cannot be read", "Check its id"),
    "missing corpus, logged in": (
        f"{FORGET}='cais/wmpd': the data set cannot be read",
        "Check its id",
    ),
    "missing configuration": (
        f"{FORGET}='Salesforce/wikitext': the data set cannot be read",
        "configs: ['wikitext-103-raw-v1', 'wikitext-2-raw-v1']",
    ),
    "missing SAE": ("SAE='me/nothing:x': the SAE is not on the hub", "Check the name"),
    "missing id": (
        f"SAE='{RELEASE}:blocks.9.hook_resid_post': the SAE is not on the hub",
        "Valid IDs are ['blocks.0.hook_resid_pre'",
    ),
    **{
        f"gated {thing}, {visitor}": (f"{field}: {refused} is refused", ACCESS)
        for visitor in ("anonymous", "stranger", "expired")
        for thing, field, refused in (
            ("model", f"model_name='{GATED_MODEL}'", "access to the model"),
            ("corpus", f"{FORGET}='{GATED_CORPUS}'", "access"),
            ("SAE", f"SAE='{GATED_SAE}:x'", "access to the SAE"),
        )
    },
    "cut model": (
        "model_name='EleutherAI/pythia-160m': the download of the model was cut short",
        AGAIN,
    ),
    "cut config": (
        "model_name='EleutherAI/pythia-1b': the download of the model was cut short",
        AGAIN,
    ),
    "cut corpus": (f"{FORGET}='me/text': the download of the data set was cut short", AGAIN),
    "cut SAE": (f"SAE='{NEXT}': the download of the SAE was cut short", AGAIN),
    "busy SAE": (f"SAE='{NEXT}': the hub fails to serve the SAE", "Try again later"),
    "silent corpus": (f"{FORGET}='me/text': the hub cannot be reached", NETWORK),
    "closed corpus": (f"{FORGET}='me/text': the hub cannot be reached", NETWORK),
    **{
        f"{how} {thing} by command": (f"{field}: the hub cannot be reached", NETWORK)
        for how in ("silent", "closed")
        for thing, field in (
            ("model", "model_name='EleutherAI/pythia-410m'"),
            ("SAE", f"SAE='{NEXT}'"),
        )
    },
}


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    repos = Repositories(tmp_path_factory.mktemp("failing-hub"))
    for model in (PYTHIA, GATED_MODEL, "EleutherAI/pythia-160m", "EleutherAI/pythia-1b"):
        repos.model(model)
    for name in ("3-res-sm", "4-res-sm"):
        repos.sae("ctigges/pythia-70m-deduped__res-sm_processed", name, OLD_CFG)
    repos.sae(GATED_SAE, "x", OLD_CFG)
    repos.jsonl(GATED_CORPUS, FORGET_CORPUS, 100, "bio_remove_dataset.jsonl")
    repos.text("me/text", FORGET_CORPUS, 2000)
    repos.text("Salesforce/wikitext", RETAIN_CORPUS, 100, *WIKITEXTS)
    return run_client("failures.py", repos.root, tmp_path_factory.mktemp("failures") / "out")


@pytest.mark.parametrize("name", MESSAGES)
def test_message_names_failure_and_remedy(steps: dict[str, Any], name: str) -> None:
    assert steps[name]["error"] is None, steps[name]["error"]
    value = steps[name]["value"]
    beginning, remedy = MESSAGES[name]
    assert value["message"].startswith(beginning)
    assert remedy in value["message"]
    assert value["status"] == 2
    assert not value["traceback"]


@pytest.mark.parametrize("name", MESSAGES)
def test_failure_does_not_wait_and_leaves_no_files(steps: dict[str, Any], name: str) -> None:
    assert steps[name]["value"]["waited"] < 60  # the libraries' pauses between attempts
    assert not steps[name]["value"]["left"]


@pytest.mark.parametrize("visitor", ["anonymous", "stranger", "expired"])
def test_gated_corpus_names_open_alternative(steps: dict[str, Any], visitor: str) -> None:
    message = steps[f"gated corpus, {visitor}"]["value"]["message"]
    assert "path=cais/wmdp-corpora, name=bio-retain-corpus" in message


def test_failed_sae_downloads_no_model(
    steps: dict[str, Any],
) -> None:
    for name in MESSAGES:
        if "SAE" in name:
            assert not any(PYTHIA in line for line in steps[name]["requests"])


@pytest.mark.parametrize("how", ["silent", "closed"])
@pytest.mark.parametrize("thing", ["model", "SAE"])
def test_libraries_do_not_wait_for_silent_hub(steps: dict[str, Any], how: str, thing: str) -> None:
    step = steps[f"{how} {thing}"]
    assert step["value"]["message"].startswith("the hub cannot be reached (")
    assert step["value"]["waited"] == 0
    # One request finds that nobody answers. No other one follows.
    assert len(step["requests"]) == (how == "silent")


@pytest.mark.parametrize("how", ["silent", "closed"])
def test_cached_files_load_without_the_hub(steps: dict[str, Any], how: str) -> None:
    assert steps["cache"]["value"] == OLD_CFG["d_sae"], CACHED
    assert steps[f"{how} cache"]["value"] == {"value": OLD_CFG["d_sae"], "waited": 0}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (requests.exceptions.ReadTimeout("read timed out"), "unreachable"),
        (requests.exceptions.ChunkedEncodingError("IncompleteRead(10 bytes read)"), "cut short"),
        (httpx.ConnectTimeout("timed out"), "unreachable"),
        (httpx.RemoteProtocolError("peer closed connection"), "cut short"),
        (aiohttp.ClientPayloadError("Response payload is not completed"), "cut short"),
        (aiohttp.ServerTimeoutError("timeout on reading"), "unreachable"),
        (OSError("Consistency check failed: file should be of size 9 but has size 5"), "cut short"),
        (OfflineModeIsEnabled("Cannot reach the hub"), "unreachable"),
        # Here "gated" is the SAE architecture of the release, not an access rule.
        (ValueError("ID x not found in release sae_bench_pythia70m_sweep_gated"), "missing"),
        (ValueError("numbers do not match"), "other"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_failure_kind_comes_from_exception_type(error: Exception, kind: str) -> None:
    wrapped = OSError("Can't load the model. Is there a local directory?")
    wrapped.__cause__ = error
    for failure in (error, wrapped):
        assert hub.diagnose(failure).kind == kind
        assert str(error) in hub.explain_failure(failure, "the model", "a local one")


def test_offline_mode_is_named_as_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineModeIsEnabled), hub.offline_if_unreachable():
        raise OfflineModeIsEnabled("no traffic")
    message = hub.explain_failure(OfflineModeIsEnabled("no traffic"), "the model", "a local one")
    assert message.startswith("the model is not in the cache, and HF_HUB_OFFLINE is set")
