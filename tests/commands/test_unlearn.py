"""``adaptive-ortho unlearn``: before and after, saved selections, and errors before the model."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

from saelens_adaptive_ortho.commands import cli, unlearning
from saelens_adaptive_ortho.commands.unlearn import UnlearnOptions
from saelens_adaptive_ortho.judging.unlearning.saved import UnlearningSelection
from saelens_adaptive_ortho.judging.unlearning.use import unlearn
from saelens_adaptive_ortho.text.models import load_language_model

PROMPT = "The colour of the bilok is black. Many books say that the colour of the befurn is"
CONTINUATION = " grey. As for"
CONTEXT = 40
QUICK = [
    f"--set=unlearning.{setting}"
    for setting in (
        "n_select_contexts=8",
        "n_choose_contexts=4",
        "counts=[8]",
        "strengths=[4, 16]",
        "ranks=[2]",
    )
]
QUICK.append("--set=unlearning.specificities=[1.01]")  # of a random SAE


def build_sae(seed: int) -> JumpReLUSAE:
    """A random SAE for the demo's model."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(64, 96, generator=generator), dim=1)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=96, d_sae=64))
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
        sae.threshold.fill_(6.0)
    metadata = sae.cfg.metadata
    metadata.hook_name, metadata.model_name = "blocks.1.hook_resid_post", "demo:model"
    metadata.context_size = CONTEXT
    return sae


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the SAEs of two variants."""
    root = tmp_path_factory.mktemp("run")
    corpora = {d: {"path": f"demo:{d}", "max_documents": 200} for d in ("forget", "retain")}
    for seed, variant in enumerate(("adaptive", "baseline")):
        build_sae(seed).save_model(root / "seed0" / variant)
        record = json.dumps({"ortho_corpora": corpora, "ortho_holdout_fraction": 0.1})
        (root / "seed0" / variant / "runner_cfg.json").write_text(record)
    return root


@pytest.fixture(scope="module")
def saved(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A selection that the command chose."""
    file = tmp_path_factory.mktemp("selection") / "selection.json"
    given = ["--budget", "4", "--set=unlearning.gate=token", *QUICK]
    assert cli.main(["unlearn", str(run), "--save", str(file), *given]) == 0
    return file


def test_selection_is_chosen_on_the_corpora_of_the_training(saved: Path) -> None:
    selection = UnlearningSelection.load(saved)
    assert selection.kind == "clamp"
    assert selection.chosen_on is not None
    assert [c.path for c in selection.chosen_on.corpora] == ["demo:forget", "demo:retain"]
    assert selection.chosen_on.budget == 4
    assert selection.chosen_on.context_size == CONTEXT


def test_before_and_after(run: Path, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command shows what the model writes and loses, without and with the selection."""
    arguments = ["unlearn", str(run), "--selection", str(saved), "--max-new-tokens", "4"]
    arguments += ["--prompt", PROMPT, "--continuation", CONTINUATION]
    assert cli.main(arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    sae = unlearning.find_subject(str(run), "adaptive", 0).load()
    model: Any = load_language_model("demo:model")
    first, rest = (model.to_tokens(t, prepend_bos=False)[0] for t in (PROMPT, CONTINUATION))
    bos = torch.tensor([model.tokenizer.bos_token_id])
    tokens, n = torch.cat([bos, first, rest])[None], len(rest)

    def loss() -> float:
        with torch.no_grad():
            per_token = model(tokens, return_type="loss", loss_per_token=True, prepend_bos=False)
        return float(per_token[0, -n:].mean())

    def text() -> str:
        given: dict[str, Any] = {"do_sample": False, "verbose": False, "prepend_bos": False}
        found = model.generate(tokens[:, :-n], max_new_tokens=4, **given)
        return model.tokenizer.decode(found[0, 1 + len(first) :], skip_special_tokens=True)

    before = loss(), text()
    with unlearn(model, sae, saved):
        after = loss(), text()
    assert before[0] != pytest.approx(after[0], abs=0.01)
    assert f"Prompt: {PROMPT}" in shown
    for value, _ in (before, after):
        assert f"true text: {value:.2f} nats per token" in shown
    # The command says on how many tokens the clamp acts: those on which a chosen latent fires.
    selection = UnlearningSelection.load(saved)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=selection.hook_name)
        fires = (sae.encode(cache[selection.hook_name])[0, 1:, list(selection.latents)] > 0).any(1)
    n_prompt = len(first)
    edited = int(fires[:n_prompt].sum()), int(fires[n_prompt:].sum())
    assert 0 < edited[0] < n_prompt
    assert f"The edit acted on {edited[0]} of {n_prompt} tokens of the prompt, " in shown
    assert f"{edited[1]} of {n} tokens of the true text." in shown
    for _, words_written in (before, after):
        for word in words_written.split():
            assert word in shown


def test_an_edit_that_did_nothing_says_why() -> None:
    silent = unlearning.reach_in_words([unlearning.Reach("the prompt", 9, 0, 0)])
    assert silent.startswith("The edit acted on 0 of 9 tokens of the prompt. No latent")
    closed = unlearning.reach_in_words(
        [unlearning.Reach("the prompt", 9, 2, 0), unlearning.Reach("the true text", 3, 1, 0)]
    )
    assert "fire on 3 of these tokens, too few to open the gate" in closed
    open_later = [
        unlearning.Reach("the prompt", 9, 2, 0),
        unlearning.Reach("the true text", 3, 1, 1),
    ]
    assert unlearning.reach_in_words(open_later).endswith("1 of 3 tokens of the true text.")


def test_sampling_has_a_seed(run: Path, saved: Path, tmp_path: Path) -> None:
    """Before and after use the same draws; another seed writes something else."""

    def first(seed: int) -> unlearning.Answer:
        options = UnlearnOptions(
            sae=str(run),
            selection=saved,
            prompt=[PROMPT],
            temperature=2.0,
            sampling_seed=seed,
            max_new_tokens=5,
        )
        return next(iter(unlearning.before_and_after(options, say=lambda _: None)))

    one, again, two = first(1), first(1), first(2)
    assert one == again
    assert one.before != two.before


def test_prompts_from_files(run: Path, tmp_path: Path) -> None:
    lines, records = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    lines.write_text("one\n\ntwo\n")
    records.write_text(
        json.dumps({"prompt": "three", "continuation": " four"}) + "\n" + '{"prompt": "five"}\n'
    )

    def read(**given: Any) -> list[tuple[str, str | None]]:
        found = unlearning.read_prompts(UnlearnOptions(sae=str(run), **given))
        return [(p.prompt, p.continuation) for p in found]

    assert read(prompt_file=lines) == [("one", None), ("two", None)]
    assert read(prompt_file=records) == [("three", " four"), ("five", None)]
    odd = "a\u2028b\x85c\x0bd"  # str.splitlines would make four lines of it
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        lines.write_bytes(f"{odd}\r\n \r\nnext".encode(encoding))
        assert read(prompt_file=lines) == [(odd, None), ("next", None)]
        records.write_bytes(json.dumps({"prompt": odd}, ensure_ascii=False).encode(encoding))
        assert read(prompt_file=records) == [(odd, None)]
    packed = tmp_path / "prompts.txt.gz"
    packed.write_bytes(gzip.compress(b"one\n"))
    assert read(prompt_file=packed) == [("one", None)]
    lines.write_text("one\n")
    assert read(prompt=["zero"], prompt_file=lines)[0] == ("zero", None)
    assert read(prompt=["a", "b"], continuation=["c", "d"]) == [("a", "c"), ("b", "d")]


def bad_calls(run: Path, saved: Path, folder: Path) -> dict[str, list[str]]:
    """Arguments that cannot work, by a part of the message."""
    bad = folder / "bad.jsonl"
    bad.write_text('{"prompt": "a", "continuatoin": "b"}\n')
    array, latin, wrong = folder / "array.jsonl", folder / "latin.txt", folder / "wrong.jsonl"
    array.write_text("[1]\n")
    latin.write_bytes("one\nété\n".encode("latin-1"))
    wrong.write_text('{"prompt": 3}\n')
    empty = folder / "empty.txt"
    empty.write_text("\n")
    one = ["--prompt", PROMPT]
    chosen = [*one, "--selection", str(saved)]
    return {
        "give --prompt or --prompt-file": [],
        "is empty": ["--prompt", " "],
        "one for each of the 1 --prompt": [*one, "--continuation", "a", "--continuation", "b"],
        "holds no prompt": ["--prompt-file", str(empty)],
        "cannot be read (No such file": ["--prompt-file", str(folder / "none.txt")],
        f"line 1 of {bad}: continuatoin='...': unknown": ["--prompt-file", str(bad)],
        f"item 1 of {array} holds int, not an object": ["--prompt-file", str(array)],
        f"line 2 of {latin} is not UTF-8 text": ["--prompt-file", str(latin)],
        f"line 1 of {wrong}: prompt=3: must be text": ["--prompt-file", str(wrong)],
        "argument --variant: is given twice": [*one, "--variant", "a", "--variant", "b"],
        "the argument 'a\\udcff' is not UTF-8 text": ["--prompt", "a\udcff"],
        "It has seed0/adaptive, seed0/baseline": [*one, "--variant", "adaptve"],
        "has no seed3/adaptive": [*one, "--seed", "3"],
        "--budget=0.1: nothing is chosen with --selection": [*chosen, "--budget", "0.1"],
        "--kind='bounded': nothing is chosen": [*chosen, "--kind", "bounded"],
        "selection='" + str(folder / "no.json"): [*one, "--selection", str(folder / "no.json")],
        "was chosen for an SAE": [*chosen, "--variant", "baseline"],
        "Did you mean 'bounded'": [*one, "--kind", "bound"],
        "must be a number in (0, inf)": [*one, "--budget", "0"],
        "n_contexts": [*one, "--set", "unlearning.n_context=3"],
        "no such file": [*one, "--forget", str(folder / "no.jsonl"), "--retain", str(bad)],
        "--dtype='float3'": [*one, "--dtype", "float3"],
        f"--save='{folder}': is a folder": [*one, "--save", str(folder)],
        f"--save='{saved}': exists": [*chosen, "--save", str(saved)],
    }


def test_errors_come_before_the_model(
    run: Path,
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unexpected(*_: Any, **__: Any) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(unlearning.models, "load_language_model", unexpected)
    for message, arguments in bad_calls(run, saved, tmp_path).items():
        with suppress(SystemExit):  # of the parser
            assert cli.main(["unlearn", str(run), *arguments]) == 2, arguments
        found = capsys.readouterr().err
        assert message.lower() in found.lower(), (arguments, found)
    assert cli.main(["unlearn", str(tmp_path), "--prompt", PROMPT]) == 2
    assert "no cfg.json" in capsys.readouterr().err


def test_prompt_that_does_not_fit(
    run: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["unlearn", str(run), "--selection", str(saved), "--prompt", PROMPT]
    assert cli.main([*arguments, "--max-new-tokens", "120"]) == 2
    assert "the model sees 128 at most" in capsys.readouterr().err


def test_nothing_to_choose_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["unlearn", str(run), "--prompt", PROMPT, "--budget", "1e-7", *QUICK]
    assert cli.main([*arguments, "--kind", "bounded"]) == 2
    assert "every retain corpus stays within 1e-07 nats" in capsys.readouterr().err
