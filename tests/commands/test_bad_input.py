"""Bad input on the command line: exit status 2, a helpful message, and no training."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError
from requests import Response

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.settings import dump_yaml, parse_yaml
from saelens_adaptive_ortho.text import corpora
from saelens_adaptive_ortho.training import lockstep

Refused = Callable[..., str]
GATED = "cais/wmdp-bio-forget-corpus"


@pytest.fixture
def refused(
    write_config: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Refused:
    """Run ``compare`` on a config, check that it is refused before training, return the message."""
    pytest.importorskip("sae_bench", reason="without the extra bench that is what is refused")

    def fit(_: Any) -> None:
        raise AssertionError("training began")

    def run(sae: dict[str, Any] | None = None, *options: str, **changes: Any) -> str:
        monkeypatch.setattr(lockstep.LockstepTrainer, "begin", fit)
        config = str(write_config(sae, **changes))
        capsys.readouterr()
        assert main(["compare", config, *options]) == 2
        *_, message = capsys.readouterr().err.strip().splitlines()
        assert message.startswith("adaptive-ortho: error: ")
        assert not list(tmp_path.glob("run/seed*"))
        assert not list(tmp_path.glob("run/results/*"))
        return message.removeprefix("adaptive-ortho: error: ")

    return run


def two_corpora(forget: str | dict[str, Any], retain: Path) -> dict[str, Any]:
    return {"ortho_corpora": {"forget": forget, "retain": str(retain)}}


# --------------------------------------------------------------------- settings


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_outside_zero_to_one_is_refused(refused: Refused, alpha: float) -> None:
    assert refused({"ortho_alpha": alpha}).startswith(
        f"sae.ortho_alpha={alpha}: must be a number in [0, 1]"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("ortho_coefficient", -0.05), ("ortho_curriculum_start", -1.0), ("ortho_coefficient", 1e999)],
)
def test_negative_or_infinite_coefficient_is_refused(
    refused: Refused, field: str, value: float
) -> None:
    assert f"sae.{field}={value}: must be a number in [0, inf)" in refused({field: value})


def test_misspelt_key_suggests_the_nearest(refused: Refused) -> None:
    assert "sae.ortho_coeficient=0.1: unknown key. Did you mean sae.ortho_coefficient?" in refused(
        {"ortho_coeficient": 0.1}
    )


def test_override_is_checked_like_the_file(refused: Refused) -> None:
    assert "sae.ortho_alpha=7" in refused(None, "--set", "sae.ortho_alpha=7")


def test_missing_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("compare", "train", "check"):
        assert main([command, str(tmp_path / "nowhere.yaml")]) == 2
        assert "nowhere.yaml" in capsys.readouterr().err


# ------------------------------------------------------------------------ model


def test_wrong_d_in_is_refused(refused: Refused) -> None:
    message = refused({"d_in": 48})
    assert message.startswith("sae.d_in=48: ")
    assert "has width 32. Use this value" in message


def test_unknown_hook_suggests_the_nearest(refused: Refused) -> None:
    message = refused(hook_name="blocks.1.hook_resid_posst")
    assert message.startswith("hook_name='blocks.1.hook_resid_posst': ")
    assert "Nearest: blocks.1.hook_resid_post" in message


@pytest.mark.parametrize(
    ("lost", "remedy"),
    [
        (["model.safetensors"], "model.save_pretrained"),
        (["tokenizer.json", "tokenizer_config.json"], "tokenizer.save_pretrained"),
        (["config.json"], "config.json"),
    ],
)
def test_incomplete_model_directory_is_refused(
    refused: Refused, tiny: Any, tmp_path: Path, lost: list[str], remedy: str
) -> None:
    path = shutil.copytree(tiny.model, tmp_path / "model")
    for name in lost:
        (path / name).unlink()
    message = refused(model_name=str(path))
    assert message.startswith(f"model_name='{path}': ")
    assert remedy in message


def test_truncated_model_weights_are_refused(refused: Refused, tiny: Any, tmp_path: Path) -> None:
    path = shutil.copytree(tiny.model, tmp_path / "model")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert re.match("model_name=.*truncated", refused(model_name=str(path)))


def test_too_long_context_is_refused(refused: Refused) -> None:
    assert "context_size=128: the model sees 64 tokens" in refused(context_size=128)


# ---------------------------------------------------------------------- corpora


@pytest.mark.parametrize("name", ["nowhere.jsonl", "/nowhere/at/all", "./nowhere"])
def test_missing_corpus_is_refused(refused: Refused, tiny: Any, name: str) -> None:
    assert refused(**two_corpora(name, tiny.retain)).startswith(
        f"ortho_corpora.forget.path='{name}': no such file or directory"
    )


def write_bad(folder: Path, kind: str) -> Path:
    lines = "".join(json.dumps({"text": f"virus{i}"}) + "\n" for i in range(2000))
    path = folder / f"bad.{kind.split()[-1]}"
    if kind.startswith("empty"):
        path.write_bytes(gzip.compress(b"") if path.suffix == ".gz" else b"")
    elif kind.startswith("blank"):
        path.write_text("\n \n\n")
    elif kind.startswith("binary"):
        path.write_bytes(bytes(range(128, 256)) * 20)
    elif kind == "truncated jsonl.gz":
        whole = gzip.compress(lines.encode())
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "truncated parquet":
        pq.write_table(pa.table({"text": ["virus"] * 2000}), path)
        path.write_bytes(path.read_bytes()[:-40])
    else:
        path.write_text('{"text": "virus1"}\n{"text": "vir')
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "empty jsonl",
        "empty txt",
        "empty parquet",
        "empty jsonl.gz",
        "blank txt",
        "binary jsonl",
        "binary txt",
        "binary parquet",
        "binary jsonl.gz",
        "truncated jsonl.gz",
        "truncated parquet",
        "cut short jsonl",
    ],
)
def test_empty_or_unreadable_corpus_is_refused(
    refused: Refused, tiny: Any, tmp_path: Path, kind: str
) -> None:
    path = write_bad(tmp_path, kind)
    message = refused(**two_corpora(str(path), tiny.retain))
    assert message.startswith(f"ortho_corpora.forget.path='{path}': ")
    assert re.search("empty|no text|truncated, or not UTF-8", message)


def test_bad_second_corpus_is_named(refused: Refused, tiny: Any, tmp_path: Path) -> None:
    path = write_bad(tmp_path, "empty jsonl")
    assert refused(**two_corpora(str(tiny.forget), path)).startswith("ortho_corpora.retain.path=")


def test_single_corpus_is_named_by_its_field(refused: Refused, tmp_path: Path) -> None:
    path = str(write_bad(tmp_path, "empty jsonl"))
    assert refused(ortho_corpora={}, dataset_path=path).startswith("dataset_path")
    assert refused(ortho_corpora={"retain": path}).startswith("ortho_corpora.retain.path=")


def test_wrong_text_field_lists_the_fields(refused: Refused, tiny: Any) -> None:
    forget = {"path": str(tiny.forget), "text_field": "body"}
    assert refused(**two_corpora(forget, tiny.retain)).startswith(
        "ortho_corpora.forget.text_field='body': no such field"
    )
    assert "it has ['text']" in refused(**two_corpora(forget, tiny.retain))


def test_field_without_text_is_refused(refused: Refused, tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_text('{"text": 1}\n{"text": 2}\n')
    assert "has int there, not text" in refused(**two_corpora(str(path), tiny.retain))


@pytest.mark.parametrize("name", ["corpus.csv", "corpus.zip"])
def test_unknown_file_type_lists_the_known_ones(
    refused: Refused, tiny: Any, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("text\nvirus\n")
    message = refused(**two_corpora(str(tmp_path / name), tiny.retain))
    assert ".jsonl" in message
    assert ".parquet" in message


def test_directory_without_text_is_refused(refused: Refused, tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.md").write_text("nothing here")
    message = refused(**two_corpora(str(tmp_path / "folder"), tiny.retain))
    assert "the directory holds no" in message


def test_corpus_too_small_for_a_context_is_refused(
    refused: Refused, tiny: Any, tmp_path: Path
) -> None:
    path = tiny.write_jsonl(tmp_path / "small.jsonl", ["virus1 virus2"] * 3)
    message = refused(**two_corpora(str(path), tiny.retain))
    assert message.startswith(f"ortho_corpora.forget.path='{path}': too little text")
    assert "lower context_size" in message


# -------------------------------------------------------------------------- hub


def hub_raises(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(corpora, "load_dataset", load_dataset)


def gated_error() -> GatedRepoError:
    response = Response()
    response.status_code = 403
    return GatedRepoError(
        "403 Client Error. (Request ID: Root=1-0)\n\nCannot access gated repo for url "
        f"https://huggingface.co/datasets/{GATED}/resolve/main/README.md.\nAccess to dataset "
        f"{GATED} is restricted and you are not in the authorized list.",
        response=response,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "error",
    [
        gated_error(),
        DatasetNotFoundError(
            f"Dataset '{GATED}' is a gated dataset on the Hub. You must be authenticated to access "
            "it."
        ),
        DatasetNotFoundError(
            f"Dataset '{GATED}' is a gated dataset on the Hub. Visit the dataset page at "
            f"https://huggingface.co/datasets/{GATED} to ask for access."
        ),
    ],
    ids=["gated", "not logged in", "not granted"],
)
def test_gated_data_set_names_access_and_replacement(
    refused: Refused, tiny: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    hub_raises(monkeypatch, error)
    message = refused(**two_corpora(GATED, tiny.retain))
    assert message.startswith(f"ortho_corpora.forget.path='{GATED}': access is refused")
    for part in ("Request access", "hf auth login", "cais/wmdp-corpora", "bio-retain-corpus"):
        assert part in message


def test_gated_data_set_without_replacement(
    refused: Refused, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_raises(monkeypatch, gated_error())
    message = refused(**two_corpora("somebody/secret", tiny.retain))
    assert "Request access" in message
    assert "local file" in message
    assert "wmdp-corpora" not in message


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'somebody/text' on the Hub (LocalEntryNotFoundError)"),
        OSError("HTTPSConnectionPool: Max retries exceeded (Failed to resolve 'huggingface.co')"),
        TimeoutError("The read operation timed out"),
    ],
)
def test_unreachable_hub_is_reported(
    refused: Refused, tiny: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    hub_raises(monkeypatch, error)
    message = refused(**two_corpora("somebody/text", tiny.retain))
    assert message.startswith(
        "ortho_corpora.forget.path='somebody/text': the hub cannot be reached"
    )
    assert "local file" in message


def test_missing_data_set_is_refused(
    refused: Refused, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_raises(
        monkeypatch,
        DatasetNotFoundError("Dataset 'somebody/nothing' doesn't exist on the Hub."),
    )
    assert "Check its id" in refused(**two_corpora("somebody/nothing", tiny.retain))


# ----------------------------------------------------------------------- output


def test_unwritable_output_folder_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "run"
    message = refused(output_path=str(path))
    assert message.startswith(f"output_path='{path}': cannot be written")
    assert "Choose another folder" in message


def test_too_little_held_out_text_is_refused_before_training(
    refused: Refused, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """``check`` says the same."""
    evals = {"core": {"n_contexts": 64, "batch_size_prompts": 17}}
    message = refused(evals=evals)
    assert message.startswith("evals.core: the forget corpus has 16 held-out contexts, fewer")
    assert main(["check", str(write_config(evals=evals))]) == 2
    assert message in capsys.readouterr().err


def test_compare_without_output_folder_is_refused(refused: Refused) -> None:
    assert refused(output_path=None).startswith("output_path=None: a comparison needs a folder")


def test_train_without_output_folder_is_refused(
    write_config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def begin(_: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(lockstep.LockstepTrainer, "begin", begin)
    assert main(["train", str(write_config(output_path=None))]) == 2
    assert "output_path=None: the SAE would be lost. Name a folder" in capsys.readouterr().err


# ------------------------------------------------------------------------ check


def test_check_opens_everything_and_trains_nothing(
    write_config: Callable[..., Path],
    tiny: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lockstep.LockstepTrainer, "begin", None)
    assert main(["check", str(write_config())]) == 0
    out = capsys.readouterr().out
    assert (
        "forget: 49 training and 16 held-out contexts of 32 tokens (1,568 and 512 tokens); "
        "64 rows of each batch, 0.98 epochs\n"
    ) in out
    assert "ready to run" in out
    named = ["near.share=.2", f"near.path={tiny.forget}", f"forget_test.path={tiny.forget}"]
    changes = [word for change in named for word in ("--set", f"ortho_corpora.{change}")]
    assert main(["check", str(write_config()), *changes]) == 0
    lines = [x for x in capsys.readouterr().out.splitlines() if "held-out" in x]
    uses = {line.partition(":")[0]: line.rpartition("; ")[2] for line in lines}
    assert list(uses) == ["forget", "retain", "near", "forget_test"]
    assert uses["retain"] == "51 rows of each batch, 0.981 epochs"
    assert uses["near"].startswith("13 rows of each batch, ")
    assert uses["forget_test"] == "only evaluated"
    missing = str(write_config(**two_corpora("nowhere.txt", tiny.retain)))
    assert main(["check", missing, "--offline"]) == 0
    assert "were not opened" in capsys.readouterr().out
    assert main(["check", missing]) == 2


@pytest.mark.parametrize("hooks", [None, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]])
def test_check_leaves_no_new_folder(
    write_config: Callable[..., Path],
    tmp_path: Path,
    tiny: Any,
    hooks: list[str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADAPTIVE_ORTHO_CACHE", str(tmp_path / "some" / "cache"))
    more: dict[str, Any] = {"ortho_cache_activations": True}
    more |= {} if hooks is None else {"hook_names": hooks}
    before = sorted(tmp_path.rglob("*"))
    for output in (tmp_path / "run", tmp_path / "new" / "run"):
        config = write_config(output_path=str(output), **more)
        assert main(["check", str(config)]) == 0
        assert sorted(tmp_path.rglob("*")) == sorted([*before, config])
    missing = write_config(**two_corpora("nowhere.txt", tiny.retain))
    assert main(["check", str(missing)]) == 2
    assert sorted(tmp_path.rglob("*")) == sorted([*before, config])
    (tmp_path / "run").mkdir()  # that of the user stays
    assert main(["check", str(write_config())]) == 0
    assert (tmp_path / "run").is_dir()


@pytest.mark.parametrize("field", ["checkpoint_path", "resume_from_checkpoint"])
def test_check_refuses_what_compare_refuses(
    refused: Refused,
    write_config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    field: str,
) -> None:
    message = refused(**{field: "somewhere"})
    assert message.startswith(f"{field}='somewhere': a comparison ")
    for words in ([], ["--offline"]):
        assert main(["check", str(write_config(**{field: "somewhere"})), *words]) == 2
        assert message in capsys.readouterr().err


def test_check_accepts_a_config_of_train(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no variants, seeds and evaluations, or it divides its SAE."""
    path = write_config(checkpoint_path="somewhere", evals=None)
    tree = parse_yaml(path.read_text(), "config")
    del tree["evals"]
    path.write_text(dump_yaml(tree))
    assert main(["check", str(path), "--offline"]) == 0
    shards = write_config(checkpoint_path="somewhere", ortho_shards=2)
    assert main(["check", str(shards)]) == 0
    capsys.readouterr()
    assert main(["check", str(shards), "--set", "ortho_shards=3", "--offline"]) == 2
    assert "sae.d_sae=64: must be a multiple of ortho_shards" in capsys.readouterr().err


def test_check_reads_local_corpora_to_their_end(
    write_config: Callable[..., Path],
    tiny: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "torn.jsonl"
    path.write_text(tiny.forget.read_text() * 20)
    config = str(write_config(**two_corpora(str(path), tiny.retain)))
    assert main(["check", config]) == 0
    with path.open("a") as file:
        file.write('{"text": "vir')
    assert main(["check", config]) == 2
    assert "is not JSON" in capsys.readouterr().err


def test_report_of_a_file_names_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.jsonl").write_text("")
    assert main(["report", str(tmp_path / "results.jsonl")]) == 2
    assert "is a file; name the run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int8"}, "dtype='int8': must be one of float32"),
        ({"device": "meta"}, "device='meta': holds no numbers. Usable here: cpu"),
        ({"act_store_device": "meta"}, "act_store_device='meta': holds no numbers"),
        ({"model_class_name": "Nonsense"}, "model_class_name='Nonsense': known: HookedTransformer"),
        (
            {"model_from_pretrained_kwargs": {"dtype": "int8"}},
            "model_from_pretrained_kwargs.dtype='int8': must be one of float32",
        ),
        ({"hook_name": "nonsense", "sae": {"d_in": None}}, "hook_name='nonsense': is no hook"),
    ],
    ids=["dtype", "device", "store", "class", "model's dtype", "hook"],
)
def test_the_setting_that_is_wrong_is_named(
    refused: Refused, changes: dict[str, Any], message: str
) -> None:
    assert message in refused(**changes)


def test_a_device_that_torch_lacks_is_explained_in_one_sentence(refused: Refused) -> None:
    assert len(refused(device="mps")) < 200


def test_two_ways_to_name_a_hook_are_refused(refused: Refused) -> None:
    both = ["--set", "hook_name=blocks.0.hook_resid_post"]
    both += ["--set", "hook_names=[blocks.0.hook_resid_post, blocks.1.hook_resid_post]"]
    assert "give it or hook_name, not both" in refused(None, *both)


def test_the_cache_folder_is_checked(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADAPTIVE_ORTHO_CACHE", str(tmp_path / "file"))
    message = refused(ortho_cache_activations=True)
    assert f"ADAPTIVE_ORTHO_CACHE='{tmp_path / 'file'}': cannot be written" in message


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([2**70], "is no token id"),
        ([10**7], "the model's tokenizer has"),
        ([0, 5], "fewer than context_size=32. Lower context_size"),
        ([5] * 32, "Set prepend_bos: false, or tokenise the text again"),
    ],
    ids=["overflow", "vocabulary", "short", "no BOS"],
)
def test_check_reads_token_ids_to_the_end(
    write_config: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ids: list[int],
    message: str,
) -> None:
    good = [0, *range(5, 36)]
    bad = [*ids, *good[len(ids) :]] if ids[0] > 10**6 else ids
    retain = [good[:1] + good[:0:-1]] * 400
    for name, rows in {"forget": [*[good] * 400, bad], "retain": retain}.items():
        lines = (json.dumps({"tokens": row}) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    paths = {n: str(tmp_path / f"{n}.jsonl") for n in ("forget", "retain")}
    corpora = {n: {"path": p, "tokens_field": "tokens"} for n, p in paths.items()}
    config = str(write_config(ortho_corpora=corpora, seeds=[0]))
    assert main(["check", config]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "401" in error
