"""SAEBench absorption: is the latent of a first letter silent on words with a latent of their own?

Example: a latent fires on words that begin with S. On "snake" it stays silent, because a latent for
"snake" carries the letter, too. The "snake" latent has absorbed the letter (Chanin et al., arXiv
2409.14507).
"""

from __future__ import annotations

import string
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm  # tqdm.auto starts the iteration twice, which draws random numbers twice

from saelens_adaptive_ortho.evaluations.absorption import Settings, read_metrics
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.judging.isolation import replaced
from saelens_adaptive_ortho.judging.saebench.session import (
    block_of,
    keep_output,
    prepared_sae,
    session,
)
from saelens_adaptive_ortho.judging.saebench.tasks import artifacts_of_model

LETTERS = string.ascii_lowercase
EXAMPLES = 10  # solved examples that SAEBench puts into a prompt
TOP_LATENTS = 10  # latents that SAEBench lists per word
ENOUGH_LATENTS, ENOUGH_PARAMETERS = 16_384, 1_000_000_000
# The probe that picks a letter's latents trains for 50 epochs. SAEBench's batches hold 4,096 words.
# For a small vocabulary that makes 50 steps, too few to move away from the random initial weights.
PROBE_BATCHES = 10
ENCODED_BYTES = 2**31  # up to this size, the training words' latent activations stay in memory
PROBE = "probe.safetensors"
MODEL = "model"  # the model's name in the paths of SAEBench's probes


def run(context: EvalContext, settings: Settings) -> Outcome:
    """Absorption rates, averaged over the letters that a linear probe can read from the model.

    ``n_split_features`` is the mean number of latents per letter. It is 1 if no letter is split.

    Raises:
        EvaluationError: the SAE has too few latents or is not at the end of a block, the tokenizer
            splits letters, the prompts are too long, or probes can read too few letters.
    """
    from sae_bench.evals.absorption import main as absorption
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig
    from sae_bench.evals.absorption.eval_output import AbsorptionEvalOutput

    sae = prepared_sae(context)
    layer = block_of(sae)
    _check_settings(settings, sae.cfg.d_sae)
    words, position = _words_and_position(context, settings.prompt_template)
    config = AbsorptionEvalConfig(
        model_name=context.bench.model_label,
        prompt_template=settings.prompt_template,
        prompt_token_pos=position,
        max_k_value=settings.max_k,
        min_feats_for_eval=settings.min_letters,
        min_GT_probe_f1=settings.min_probe_f1,
        llm_batch_size=settings.llm_batch_size,
        llm_dtype=context.bench.dtype,
        k_sparse_probe_batch_size=min(4096, max(1, len(words) // PROBE_BATCHES)),
        precalc_k_sparse_probe_sae_acts=4 * len(words) * sae.cfg.d_sae <= ENCODED_BYTES,
    )
    with warnings.catch_warnings(), session(context) as folder, _served(context, words):
        # If no held-out word begins with a letter, its F1 and AUC are undefined. They are not used.
        warnings.filterwarnings("ignore", module="sklearn")
        probes = _letter_probes(context, config, layer, words)
        f1 = _probe_f1(context, config, layer, probes)
        _check_letters(f1, settings, layer)
        output = folder / "output"
        output.mkdir()
        with _paths_bound(absorption, folder / "scratch", probes):
            results = absorption.run_eval(
                config, [(context.release, sae)], context.bench.device, str(output), True
            )
        file = output / f"{context.release}_custom_sae_eval_results.json"
        kept = keep_output(context, "absorption", file, AbsorptionEvalOutput)
    (result,) = results.values()
    letters = {row.pop("first_letter"): row for row in result["eval_result_details"]}
    return Outcome(
        {
            **read_metrics(result["eval_result_metrics"]),
            "n_letters": float(len(letters)),
        },
        {
            "letters": letters,
            "probe_f1": f1,
            "caveat": _caveat(context, sae.cfg.d_sae),
            "sae_bench_file": kept,
        },
    )


def _check_settings(settings: Settings, d_sae: int) -> None:
    needed = max(settings.max_k, TOP_LATENTS)
    if d_sae < needed:
        raise EvaluationError(f"the SAE has {d_sae} latents and SAEBench ranks {needed} of them")
    if settings.min_letters < 2:
        raise EvaluationError("evals.absorption.min_letters must be 2 or more, for a spread")
    if settings.prompt_template.count("{word}") != 1:
        raise EvaluationError("evals.absorption.prompt_template must hold {word} once")


def _words_and_position(context: EvalContext, template: str) -> tuple[list[str], int]:
    """Words that are one token in a prompt, and this token's position from the prompt's end.

    The words are sorted. SAEBench's own list has the order of a hash table, which changes from
    call to call.

    Raises:
        EvaluationError: letters are not single tokens, or prompts do not fit into the context.
    """
    from sae_bench.evals.absorption.vocab import get_alpha_tokens

    model: Any = context.model

    def ids(texts: list[str]) -> list[list[int]]:
        return model.tokenizer(texts, add_special_tokens=False)["input_ids"]

    answers = [f" {letter}" for letter in string.ascii_uppercase]
    split = [a.strip() for a, tokens in zip(answers, ids(answers), strict=True) if len(tokens) != 1]
    if split:
        raise EvaluationError(
            "needs a tokenizer with a single token for each of ' A' to ' Z'; this one splits "
            f"{' '.join(split)}"
        )
    before, after = template.split("{word}")
    (line,), (tail,) = ids([f"\n{before} A{after}"]), ids([f" A{after}"])
    candidates = sorted(set(get_alpha_tokens(model.tokenizer)))
    words = [
        word
        for word, tokens in zip(
            candidates, ids([f"\n{before}{word}{after}" for word in candidates]), strict=True
        )
        if len(tokens) == len(line)
    ]
    length = 1 + (EXAMPLES + 1) * len(line) + EXAMPLES
    if length > model.cfg.n_ctx:
        raise EvaluationError(
            f"a prompt with {EXAMPLES} solved examples takes {length} tokens, and the model sees "
            f"{model.cfg.n_ctx}; shorten evals.absorption.prompt_template"
        )
    return words, -len(tail)


@contextmanager
def _served(context: EvalContext, words: list[str]) -> Iterator[None]:
    """Make SAEBench draw from these words, store its probes under ``MODEL``, and train silently.

    It stores the probes as safetensors. It would pickle them, and a pickle from a run folder could
    run any code.
    """
    from sae_bench.evals.absorption import common, feature_absorption, k_sparse_probing, probing

    # The probes exist already, so SAEBench need not train them.
    def stored_data(model: Any, base_template: str, pos_idx: int, **where: Any) -> Any:
        del base_template, pos_idx
        return common.load_probe_data_split(model, **where)

    def stored_probe(model: Any, base_template: str, pos_idx: int, **where: Any) -> Any:
        del base_template, pos_idx
        return _load_probe(model.cfg.model_name, **where)

    with (
        replaced(probing, "tqdm", lambda steps, **_: tqdm(steps, disable=True)),
        replaced(common, "get_alpha_tokens", lambda _tokenizer: words),
        replaced(feature_absorption, "get_alpha_tokens", lambda _tokenizer: words),
        replaced(common, "save_probe_and_data", _save_probe),
        replaced(feature_absorption, "load_probe", _load_probe),
        replaced(k_sparse_probing, "load_or_train_probe", stored_probe),
        replaced(k_sparse_probing, "load_probe_data_split_or_train", stored_data),
        replaced(context.model.cfg, "model_name", MODEL),
    ):
        yield


@contextmanager
def _paths_bound(absorption: Any, scratch: Path, probes: Path) -> Iterator[None]:
    """Make SAEBench's steps use these folders instead of folders inside the installed package."""
    k_sparse = absorption.run_k_sparse_probing_experiment
    absorb = absorption.run_feature_absortion_experiment
    folder = scratch / "k_sparse"
    with (
        replaced(
            absorption,
            "run_k_sparse_probing_experiment",
            partial(k_sparse, experiment_dir=folder, probes_dir=probes),
        ),
        replaced(
            absorption,
            "run_feature_absortion_experiment",
            partial(
                absorb,
                experiment_dir=scratch / "absorption",
                sparse_probing_experiment_dir=folder,
                probes_dir=probes,
            ),
        ),
    ):
        yield


def _letter_probes(context: EvalContext, config: Any, layer: int, words: list[str]) -> Path:
    """The folder with the linear probes for letters and the activations they were trained on.

    Raises:
        EvaluationError: for some letter there is no training word.
    """
    from sae_bench.evals.absorption.common import train_and_save_probes

    def make(folder: Path) -> None:
        train_and_save_probes(
            context.model,  # type: ignore[arg-type]
            [layer],
            base_template=config.prompt_template,
            pos_idx=config.prompt_token_pos,
            probes_dir=folder,
            device=context.bench.device,
        )
        for copy in folder.rglob("*.dat"):  # data.npz holds the same numbers
            copy.unlink()

    hook_name = f"blocks.{layer}.hook_resid_post"
    parts = [config.prompt_template, config.prompt_token_pos, words, PROBE]
    probes = artifacts_of_model(context, "absorption", hook_name, make, *parts)
    seen = set(np.load(_probe_folder(probes, layer) / "data.npz")["y_train"].tolist())
    unseen = [letter for i, letter in enumerate(LETTERS) if i not in seen]
    if unseen:
        raise EvaluationError(
            "needs training words for every letter; too few tokens of this tokenizer are words "
            f"that begin with {', '.join(unseen)}"
        )
    return probes


def _save_probe(probe: torch.nn.Module, data: dict[str, Tensor], probing_path: Path) -> None:
    """Write a probe and the rows that it was trained and tested on, without pickle."""
    probing_path.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in probe.state_dict().items()}, probing_path / PROBE)
    np.savez(
        probing_path / "data.npz",
        X_train=data["X_train"].detach().cpu().numpy(),
        X_test=data["X_test"].detach().cpu().numpy(),
        y_train=data["y_train"].detach().cpu().numpy(),
        y_test=data["y_test"].detach().cpu().numpy(),
    )


def _load_probe(
    model_name: str,
    layer: int,
    probes_dir: str | Path,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> torch.nn.Module:
    """The probe that :func:`_save_probe` wrote, in SAEBench's dtype by default."""
    from sae_bench.evals.absorption.common import DEFAULT_DTYPE
    from sae_bench.evals.absorption.probing import LinearProbe

    state = load_file(Path(probes_dir) / model_name / f"layer_{layer}" / PROBE)
    n_outputs, n_inputs = state["fc.weight"].shape
    probe = LinearProbe(n_inputs, n_outputs)
    probe.load_state_dict(state)
    return probe.to(device=device, dtype=dtype or DEFAULT_DTYPE)


def _probe_folder(probes: Path, layer: int) -> Path:
    return probes / MODEL / f"layer_{layer}"


@torch.no_grad()
def _probe_f1(context: EvalContext, config: Any, layer: int, probes: Path) -> dict[str, float]:
    """F1 of each letter's probe on the held-out words, as SAEBench computes it."""
    from sae_bench.evals.absorption.common import load_probe_data_split
    from sklearn.metrics import f1_score

    device = context.bench.device
    probe = _load_probe(MODEL, layer, probes, device=device)
    inputs, labelled = load_probe_data_split(
        context.model,  # type: ignore[arg-type]
        layer,
        "test",
        probes,
        device="cpu",
    )
    batches = inputs.split(config.eval_k_sparse_probe_batch_size)
    hits = torch.cat([probe(batch.to(device)).float().cpu() > 0 for batch in batches]).numpy()
    labels = np.array([label for _, label in labelled])
    return {letter: float(f1_score(labels == i, hits[:, i])) for i, letter in enumerate(LETTERS)}


def _check_letters(f1: dict[str, float], settings: Settings, layer: int) -> None:
    """Raise an error where SAEBench would stop without a result."""
    good = [letter for letter in f1 if f1[letter] > settings.min_probe_f1]
    if len(good) < settings.min_letters:
        poor = ", ".join(f"{a} {f1[a]:.2f}" for a in f1 if a not in good)
        raise EvaluationError(
            f"{len(good)} first letters can be read from the model after block {layer} by a linear "
            f"probe with F1 above {settings.min_probe_f1}, and {settings.min_letters} are needed; "
            f"too poor are {poor}. Use a larger model (1B parameters or more) or another block; "
            "or lower evals.absorption.min_letters, for numbers that only illustrate"
        )


def _caveat(context: EvalContext, d_sae: int) -> str | None:
    parameters = sum(p.numel() for p in context.model.parameters())
    if d_sae >= ENOUGH_LATENTS and parameters >= ENOUGH_PARAMETERS:
        return None
    return (
        f"Absorption wants {ENOUGH_LATENTS:,} latents or more and a model of 1B parameters or "
        f"more; here are {d_sae:,} latents and {parameters / 1e6:,.1f}M parameters, so compare "
        "with care."
    )
