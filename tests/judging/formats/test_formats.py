"""SAEs of other libraries compute the same after they are read as SAEs of SAELens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.judging import formats
from saelens_adaptive_ortho.judging.formats.hooks import hook_of_module
from saelens_adaptive_ortho.judging.options import JudgingOptions
from saelens_adaptive_ortho.judging.subjects import Subject, find_subject, workbench_for
from saelens_adaptive_ortho.report.published import load, read_file
from saelens_adaptive_ortho.report.sparsity import methods
from saelens_adaptive_ortho.report.statistics import summarise
from saelens_adaptive_ortho.results import load_results
from tests.judging.formats import folders
from tests.judging.formats.folders import FOLDERS, Folder
from tests.packages import Install
from tests.report.published_files import sweep
from tests.tiny import CONTEXT, D_SAE, HOOK, WIDTH, Tiny

EXACT = {"rtol": 1e-6, "atol": 1e-6}
# The names of its folders tell where an SAE of Gemma Scope reads; elsewhere the user does.
GIVEN = {"gemma_scope": HOOK}


@pytest.mark.parametrize("name", FOLDERS)
def test_sae_computes_what_its_library_computes(name: str, tmp_path: Path) -> None:
    folder: Folder = FOLDERS[name](tmp_path)
    subject = Subject.parse(str(folder.path), GIVEN.get(name))
    sae = subject.load()
    assert sae.cfg.architecture() == folder.architecture
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (WIDTH, D_SAE)
    x = torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        acts = sae.encode(x)
        expected = folder.encode(x)
        assert 0.01 < float((expected > 0).float().mean()) < 0.8
        torch.testing.assert_close(acts, expected * folder.scale, **EXACT)
        torch.testing.assert_close(sae.decode(acts), folder.decode(expected), **EXACT)


@pytest.mark.parametrize("name", [n for n in FOLDERS if n != "gemma_scope"])
def test_folder_tells_model_hook_and_context(name: str, tmp_path: Path) -> None:
    metadata = Subject.parse(str(FOLDERS[name](tmp_path).path)).load().cfg.metadata
    assert metadata.hook_name == HOOK
    assert metadata.model_name == "some/model"
    if name != "open_sae":  # its config does not have it
        assert metadata.context_size == CONTEXT


def test_loaded_sae_has_the_asked_dtype_and_is_saved_by_the_host(tmp_path: Path) -> None:
    subject = Subject.parse(f"mine={folders.sparsify(tmp_path).path}")
    assert (subject.variant, subject.format and subject.format.name) == ("mine", "sparsify")
    assert subject.load(dtype="bfloat16").W_dec.dtype == torch.bfloat16
    sae = subject.load()
    sae.save_model(tmp_path / "saved")
    again = Subject.parse(str(tmp_path / "saved"))
    assert again.format is None
    x = torch.randn(4, WIDTH)
    assert torch.equal(again.load()(x), sae(x))


# ------------------------------------------------------------------ algebra


def test_row_of_zeros_stays_dead(tmp_path: Path) -> None:
    x = torch.randn(5, WIDTH)
    for act_fn in ("jumprelu", "topk"):
        folder = folders.lm_saes(tmp_path, act_fn).path
        file = folder / "sae_weights.safetensors"
        state = load_file(file)
        state["W_D"][3] = 0.0
        save_file(state, file)
        sae = Subject.parse(str(folder)).load()
        acts = sae.encode(x)
        assert bool(acts.isfinite().all())
        assert not acts[:, 3].any()
        assert bool(sae(x).isfinite().all())


def test_threshold_of_batch_top_k_goes_to_every_latent(tmp_path: Path) -> None:
    sae = Subject.parse(str(folders.batch_top_k(tmp_path, 0.25).path)).load()
    assert sae.threshold.tolist() == [0.25] * D_SAE


# ------------------------------------------------------------------ hooks


@pytest.mark.parametrize(
    ("module", "hook"),
    [
        ("layers.5", "blocks.5.hook_resid_post"),
        ("h.0", "blocks.0.hook_resid_post"),
        ("model.layers.12", "blocks.12.hook_resid_post"),
        ("layers.5.mlp", None),
        ("embed_tokens", None),
        ("layers.x", None),
    ],
)
def test_hook_of_a_module(module: str, hook: str | None) -> None:
    found, advice = hook_of_module(module)
    assert found == hook
    assert ("--hook" in advice) == (hook is None)


def test_output_of_an_mlp_is_not_guessed(tmp_path: Path) -> None:
    folder = folders.sparsify(tmp_path, "layers.1.mlp").path
    with pytest.raises(ConfigError, match=r"--hook=None: .*blocks\.1\.hook_mlp_out, if the model"):
        Subject.parse(str(folder)).load()
    sae = Subject.parse(str(folder), "blocks.1.hook_mlp_out").load()
    assert sae.cfg.metadata.hook_name == "blocks.1.hook_mlp_out"


def test_folder_of_a_seed_belongs_to_the_module_above(tmp_path: Path) -> None:
    folder = folders.sparsify(tmp_path, "layers.1/seed0").path
    (tmp_path / "run/layers.1/config.json").write_text("{}")  # not of a run
    metadata = Subject.parse(str(folder)).load().cfg.metadata
    assert (metadata.hook_name, metadata.model_name) == (HOOK, "some/model")


def test_unnamed_submodule_is_a_guess_with_a_warning(tmp_path: Path) -> None:
    folder = folders.auto_encoder_new(tmp_path).path
    config = json.loads((folder / "config.json").read_text())
    config["trainer"]["submodule_name"] = None
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="names no submodule, so the SAE is taken for"):
        assert Subject.parse(str(folder)).load().cfg.metadata.hook_name == HOOK
    Subject.parse(str(folder), "blocks.0.hook_mlp_out").load()  # no warning


def test_hook_option_also_holds_for_saes_of_the_host(tmp_path: Path) -> None:
    folders.sparsify(tmp_path)
    Subject.parse(str(tmp_path / "run/layers.1")).load().save_model(tmp_path / "host")
    sae = Subject.parse(str(tmp_path / "host"), "blocks.0.hook_resid_post").load()
    assert sae.cfg.metadata.hook_name == "blocks.0.hook_resid_post"
    found = find_subject(str(tmp_path / "run/layers.1"), "adaptive", 0, "blocks.0.hook_resid_pre")
    assert found.load().cfg.metadata.hook_name == "blocks.0.hook_resid_pre"


@pytest.mark.parametrize(
    ("place", "hook"),
    [
        ("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "blocks.20.hook_resid_post"),
        (
            "models--google--gemma-scope-2b-pt-mlp/snapshots/0a/layer_3/width_16k/average_l0_9",
            "blocks.3.hook_mlp_out",
        ),
        ("gemma-scope-2b-pt-att/layer_7/width_16k/average_l0_9", "blocks.7.attn.hook_z"),
    ],
)
def test_names_of_folders_tell_where_gemma_scope_reads(
    place: str, hook: str, tmp_path: Path
) -> None:
    sae = Subject.parse(str(folders.gemma_scope(tmp_path, place).path)).load()
    metadata = sae.cfg.metadata
    assert (metadata.hook_name, metadata.model_name) == (hook, "gemma-2-2b")
    assert (metadata.context_size, metadata.prepend_bos) == (1024, True)
    assert sae.cfg.reshape_activations == ("hook_z" if hook.endswith("hook_z") else "none")


def test_other_names_of_folders_need_the_options(tmp_path: Path) -> None:
    folder = folders.gemma_scope(tmp_path, "research/2b/average_l0_71").path
    with pytest.raises(ConfigError, match=r"--hook=None: .*Give --model and --hook"):
        Subject.parse(str(folder)).load()


# ------------------------------------------------------------------ the table


def test_folders_are_recognised_by_their_files(tmp_path: Path) -> None:
    kinds = {name: formats.recognised(make(tmp_path / name).path) for name, make in FOLDERS.items()}
    names = {name: kind and kind.name for name, kind in kinds.items()}
    assert {names[n] for n in names if n.startswith("lm_saes")} == {"lm_saes"}
    others = {n: found for n, found in names.items() if not n.startswith("lm_saes")}
    own = ("gemma_scope", "sparsify", "open_sae")
    assert others == {n: n if n in own else "dictionary_learning" for n in others}
    assert formats.recognised(tmp_path) is None
    assert formats.recognised(tmp_path / "missing") is None


def test_folder_of_the_host_stays_with_the_host(tmp_path: Path) -> None:
    for name in ("cfg.json", "sae_weights.safetensors", "params.npz", "config.json"):
        (tmp_path / name).write_text("{}")
    assert formats.recognised(tmp_path) is None


def test_folder_without_an_sae_is_refused_with_the_known_formats(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"no cfg\.json of SAELens.*params\.npz.*ae\.pt"):
        Subject.parse(str(tmp_path))


@pytest.mark.parametrize("command", ["eval", "analyse", "unlearn"])
def test_help_lists_the_formats(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    for kind in formats.FORMATS:
        assert f"{kind.title} " in shown
        assert kind.files in shown


PLUGIN = """
import torch
from saelens_adaptive_ortho.judging.formats import Format
from saelens_adaptive_ortho.judging.formats.reading import Converted

IDENTITY = Format(
    "identity", "Identity", "identity.txt", lambda f: (f / "identity.txt").is_file(), "my_saes"
)

def read(folder):
    n = int((folder / "identity.txt").read_text())
    state = {"W_enc": torch.eye(n), "b_enc": torch.zeros(n)}
    state |= {"W_dec": torch.eye(n), "b_dec": torch.zeros(n)}
    config = {"architecture": "standard", "apply_b_dec_to_input": False}
    return Converted(config, state, {"hook_name": "blocks.0.hook_resid_post"})
"""


def test_another_package_adds_a_format(install: Install, tmp_path: Path) -> None:
    install("my_saes", PLUGIN, {formats.GROUP: {"identity": "my_saes:IDENTITY"}})
    (tmp_path / "identity.txt").write_text("3")
    x = torch.rand(2, 3)
    assert torch.equal(Subject.parse(str(tmp_path)).load()(x), x)
    assert "Identity" in formats.titles()


# ------------------------------------------------------------------ eval, end to end


@pytest.mark.usefixtures("no_report")
def test_eval_judges_one_folder_of_each_library(tiny: Tiny, tmp_path: Path) -> None:
    """The mean cosine of a decoder row with its nearest row comes from the folder itself, too."""
    names = ("gemma_scope", "AutoEncoderTopK", "sparsify", "lm_saes jumprelu", "open_sae")
    made = {re.sub("[_ ]", "-", name): FOLDERS[name](tmp_path / name) for name in names}
    out = tmp_path / "out"
    command = ["eval", *(f"{name}={folder.path}" for name, folder in made.items())]
    command += ["--evals", "subspace", "--set", "subspace.n_contexts=8", "--hook", HOOK]
    command += ["--model", str(tiny.model), "--context-size", str(CONTEXT), "--out", str(out)]
    command += ["--forget", str(tiny.forget), "--retain", str(tiny.retain)]
    assert main(command) == 0
    results = {result.variant: result for result in load_results(out)}
    assert set(results) == set(made)
    for name, folder in made.items():
        rows = folder.decode(torch.eye(D_SAE)) - folder.decode(torch.zeros(1, D_SAE))
        rows = torch.nn.functional.normalize(rows, dim=1)
        nearest = (rows @ rows.T).fill_diagonal_(-1).max(1).values.mean()
        assert results[name].ok
        assert results[name].metrics["mean_max_cosine"] == pytest.approx(float(nearest), abs=1e-6)


@pytest.mark.saebench
@pytest.mark.usefixtures("no_report")
def test_saebench_judges_an_sae_that_knows_neither_model_nor_context_size(
    tiny: Tiny, tmp_path: Path
) -> None:
    pytest.importorskip("sae_bench")
    folder = FOLDERS["AutoEncoderTopK"](tmp_path).path
    config = json.loads((folder / "config.json").read_text())
    del config["trainer"]["lm_name"], config["buffer"]
    (folder / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    command = ["eval", f"sae={folder}", "--evals", "core", "--out", str(out)]
    command += ["--set", "core.n_contexts=8", "--set", "core.batch_size_prompts=4"]
    command += ["--model", str(tiny.model), "--context-size", str(CONTEXT)]
    command += ["--forget", str(tiny.forget), "--retain", str(tiny.retain)]
    assert main(command) == 0
    (result,) = load_results(out)
    assert result.metrics["pooled/l0"] == pytest.approx(folders.K, abs=0.1)


@pytest.mark.saebench
def test_methods_at_several_sparsities_beside_published_results(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sae_bench")
    saes = []
    for k in (2, 5, 10):
        monkeypatch.setattr(folders, "K", k)
        saes.append(f"topk={k}={FOLDERS['AutoEncoderTopK'](tmp_path / str(k)).path}")
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    sweep(theirs, "gated", {4.0: 0.5, 8.0: 0.6}, model_name="some/model", hook_name=HOOK)
    sweep(theirs, "standard", {4.0: 0.5, 8.0: 0.6}, hook_name=HOOK)
    command = ["eval", *saes, "--evals", "core", "--out", str(out), "--published", str(theirs)]
    command += ["--set", "core.n_contexts=8", "--set", "core.batch_size_prompts=4"]
    command += ["--model", str(tiny.model), "--context-size", str(CONTEXT)]
    command += ["--forget", str(tiny.forget), "--retain", str(tiny.retain)]
    assert main(command) == 0
    results = load_results(out)
    assert [r.variant for r in results] == ["topk=2", "topk=5", "topk=10"]
    (method,) = methods(summarise(results))
    assert (method.name, method.has_curve) == ("topk", True)
    assert {m.label: m.reason for m in load(out)} == {
        "gated, 4,096 latents": "",
        "standard, 4,096 latents": "another model than in this run",
    }
    page = (out / "report.html").read_text()
    assert "Over sparsity" in page
    assert "published, other settings" in page
    # SAEBench's file of one of our SAEs is read as what the evaluation itself has stored.
    file = out / "results" / "sae_bench" / "core" / results[0].details["sae_bench_files"]["pooled"]
    found = read_file(file).sae
    assert found.hook == HOOK
    for key, value in found.metrics.items():
        assert results[0].metrics[key.removeprefix("core/")] == pytest.approx(value)


def test_unknown_context_size_fits_every_known_one(tiny: Tiny, tmp_path: Path) -> None:
    given = {"model": str(tiny.model), "forget": str(tiny.forget), "out": tmp_path / "out"}
    unknown = Subject.parse(str(folders.open_sae(tmp_path).path))
    known = Subject.parse(str(folders.sparsify(tmp_path).path))
    for order, size in (([unknown, known], CONTEXT), ([known, unknown], CONTEXT)):
        assert workbench_for(order, JudgingOptions(**given)).context_size == size


@pytest.mark.usefixtures("no_report")
def test_eval_says_which_option_is_missing(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folders.gemma_scope(tmp_path).path
    command = ["eval", str(folder), "--out", str(tmp_path / "out"), "--evals", "subspace"]
    command += ["--forget", str(tiny.forget), "--retain", str(tiny.retain)]
    assert main(command) == 2
    assert "--hook=None: " in capsys.readouterr().err
    assert main([*command, "--hook", HOOK]) == 2
    assert "--model=None: " in capsys.readouterr().err
