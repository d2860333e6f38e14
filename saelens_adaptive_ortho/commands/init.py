"""``adaptive-ortho init``: write an experiment for a model and two texts."""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelens_adaptive_ortho.commands.options import Command, say
from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.files import (
    check_new_file,
    check_writable,
    new_folders_removed,
    write_text_atomic,
)
from saelens_adaptive_ortho.settings import dump_yaml

if TYPE_CHECKING:
    from saelens_adaptive_ortho.text.models import ModelShape

# Sizes that suit a device: latents per dimension of the activations, bounds of their number, most
# latents that fire per token, most tokens to train on, tokens in a step, contexts that the model
# reads at once.
SIZES: dict[str, dict[str, int]] = {
    "cpu": {
        "expansion": 7,
        "least": 1024,
        "most": 8192,
        "k": 40,
        "tokens": 614_400,
        "batch": 2048,
        "contexts": 16,
    },
    "cuda": {
        "expansion": 16,
        "least": 4096,
        "most": 65_536,
        "k": 64,
        "tokens": 20_000_000,
        "batch": 4096,
        "contexts": 64,
    },
}
LEAST_TOKENS = 204_800  # of a sensible training
EPOCHS = 6  # how often the smaller text may be read
HELD_OUT = 0.15  # share of the documents
HELD_OUT_CONTEXTS = 16  # of each text that the evaluations need at least: a batch of `core`
CHARACTERS = 4  # in a token, about
CONTEXT = 128
SITE = 0.4  # depth of the hook, as a share of the layers


@dataclass(frozen=True, kw_only=True)
class InitOptions:
    """The file, the model and the texts. What is missing is asked for, if somebody can answer.

    Args:
        config: new YAML file.
        model: a local Hugging Face directory, or the name of a model on the hub.
        forget: text to forget: a file (.jsonl, .json, .txt, .parquet), a folder of them, or a hub
            data set (NAME or NAME:CONFIGURATION).
        retain: text to keep.
        near: text to keep that is close to what is forgotten. It gets a fifth of the retain rows.
        text_field: column that holds the text.
        layer: layer whose output the SAE reads, counted from 0. By default at 40% of the depth.
        device: cpu or cuda; by default cuda if there is one.
    """

    config: Path = field(metadata={"positional": "CONFIG"})
    model: str | None = None
    forget: str | None = None
    retain: str | None = None
    near: str | None = None
    text_field: str = "text"
    layer: int | None = None
    device: str | None = None


def run(options: InitOptions) -> int:
    """Write the experiment, and print what to do next."""
    if options.config.suffix not in {".yaml", ".yml"}:
        raise reject("CONFIG", str(options.config), "name a file that ends in .yaml.")
    with new_folders_removed([options.config.parent]):  # if the experiment is refused
        check_new_file("CONFIG", options.config)
        options = _answered(options)
        tree = experiment_tree(options)
        check_writable("CONFIG", options.config.parent)
        write_text_atomic(options.config, _explained(tree))
        _check(options.config)
    sae = tree["sae"]
    say(
        f"{options.config}: {tree['hook_name']} of {options.model}, {sae['d_sae']:,} latents, "
        f"{tree['training_tokens']:,} tokens, on {tree['device']}. Next:"
    )
    name = shlex.quote(str(options.config))
    print(f"adaptive-ortho check {name}     # reads texts and model, trains nothing")
    print(f"adaptive-ortho plan {name}      # how long it will take, memory, disk")
    print(f"adaptive-ortho compare {name}   # trains, evaluates, writes the report")
    return 0


def experiment_tree(options: InitOptions) -> dict[str, Any]:
    """The settings of an experiment with a baseline and an adaptive SAE.

    Raises:
        ConfigError: the model, a text, the layer or the device cannot be used.
    """
    from saelens_adaptive_ortho.text.models import model_shape

    assert options.model is not None
    device = _device(options.device)
    size, shape = SIZES[device], model_shape(options.model)
    texts = {"forget": options.forget, "retain": options.retain, "near": options.near}
    corpora = {
        name: _corpus(name, text, options.text_field) for name, text in texts.items() if text
    }
    if "near" in corpora:
        corpora["near"]["share"] = 0.2
    layer = _layer(options.layer, shape)
    d_sae = _power_of_two(size["expansion"] * shape.width, size["least"], size["most"])
    context = min(CONTEXT, shape.context_size or CONTEXT)
    tokens = _tokens(corpora, size, context)
    steps = tokens // size["batch"]
    tree: dict[str, Any] = {
        "model_name": options.model,
        "model_from_pretrained_kwargs": {"dtype": _dtype(shape)},
        "hook_name": f"blocks.{layer}.hook_resid_post",
        "ortho_corpora": corpora,
        "ortho_holdout_fraction": HELD_OUT,
        "ortho_holdout_contexts": 128,
        "context_size": context,
        "store_batch_size_prompts": size["contexts"],
        "n_batches_in_buffer": 32,
        "exclude_special_tokens": True,
        "ortho_b_dec_init": "mean",
        "ortho_cache_activations": True,
        "sae": {
            "architecture": "adaptive_ortho_batchtopk",
            "d_in": shape.width,
            "d_sae": d_sae,
            "k": min(size["k"], d_sae // 8),
            "normalize_activations": "expected_average_only_in",
        },
        "training_tokens": tokens,
        "train_batch_size_tokens": size["batch"],
        "lr": 3e-3 if device == "cpu" else 3e-4,
        "lr_warm_up_steps": max(1, steps // 10),
        "lr_decay_steps": max(1, steps // 5),
        "dead_feature_window": max(1, min(1000, steps // 3)),
        "n_checkpoints": 2,
        "dtype": "float32",
        "device": device,
        "variants": {"baseline": {"ortho_mode": "off"}, "adaptive": {"ortho_mode": "adaptive"}},
        "seeds": [0],
        "evals": {
            "core": {"n_contexts": 32},
            "subspace": {"n_contexts": 96},
            "unlearning": {
                "questions": "none",
                "counts": [20, 160],
                "strengths": [2.0, 8.0, 32.0],
                "specificities": [9.0, 3.0],
                "n_select_contexts": 96,
                "n_choose_contexts": 8,
                "n_contexts": 32,
                "n_reference_contexts": 16,
                "loss_every": 4,
                "ranks": [8],
            },
        },
        "output_path": f"runs/{options.config.stem}",
    }
    if device == "cuda":
        tree["autocast"] = True
    return tree


#: A comment above some settings of the file.
COMMENTS = {
    "hook_name": "Where the SAE reads the model. `hook_names: [...]` compares several layers.",
    "ortho_corpora": "What to forget and what to keep.",
    "ortho_holdout_fraction": "Share of the documents that are kept for evaluation.",
    "ortho_b_dec_init": "A short run does not get b_dec to the mean of the activations by itself.",
    "ortho_cache_activations": "Another seed or setting does not run the model on this text again.",
    "sae": "k latents fire per token, of d_sae.",
    "training_tokens": "Fewer if a text is short: neither is read more than about {epochs} times.",
    "variants": "The SAEs that are compared: changes to `sae` above.",
    "seeds": "A verdict needs three: [0, 1, 2].",
    "output_path": "The run folder, relative to the folder where the commands are given.",
    "evals": "`adaptive-ortho evaluations` lists all evaluations and their settings.",
}


def _explained(tree: dict[str, Any]) -> str:
    """The settings as YAML, with comments."""
    text = "# adaptive-ortho init wrote this. Any field of SAELens's runner config may be added.\n"
    for key, value in tree.items():
        if key in COMMENTS:
            text += f"\n# {COMMENTS[key].format(epochs=EPOCHS)}\n"
        text += dump_yaml({key: value})
    return text


def _check(path: Path) -> None:
    """The new file must be a valid experiment; otherwise it does not stay."""
    from saelens_adaptive_ortho.experiments.experiment import load_experiment

    try:
        load_experiment(path)
    except BaseException:
        path.unlink()
        raise


def _answered(options: InitOptions) -> InitOptions:
    """The options, with what is missing asked for.

    Raises:
        ConfigError: something is missing, and nobody can be asked.
    """
    questions = {
        "model": "Model (a Hugging Face directory, or a name on the hub): ",
        "forget": "Text to forget (.jsonl, .txt, .parquet, a folder, or a hub data set): ",
        "retain": "Text to keep: ",
    }
    given: dict[str, str] = {}
    for name, question in questions.items():
        if getattr(options, name):
            continue
        if not sys.stdin.isatty():
            raise reject(f"--{name}", None, f"is missing. Give --{name}, or answer in a terminal.")
        given[name] = input(question).strip()
        if not given[name]:
            raise reject(f"--{name}", "", "is empty.")
    return replace(options, **given)


def _corpus(name: str, text: str, text_field: str) -> dict[str, Any]:
    from saelens_adaptive_ortho.text.corpora import CorpusConfig

    read = CorpusConfig.parse(f"--{name}", text)
    fields = {"path": read.path, "name": read.name}
    if text_field != "text":
        fields["text_field"] = text_field
    return {key: value for key, value in fields.items() if value is not None}


def _device(name: str | None) -> str:
    import torch

    from saelens_adaptive_ortho.devices import check_device

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in SIZES:
        raise reject("--device", name, f"must be one of {', '.join(SIZES)}.")
    check_device("--device", name)
    return name


def _dtype(shape: ModelShape) -> str:
    """As the weights are stored; float16 overflows in some models, so bfloat16 takes its place."""
    return "float32" if shape.dtype == "float32" else "bfloat16"


def _layer(layer: int | None, shape: ModelShape) -> int:
    if layer is None:
        return min(round(SITE * shape.layers), shape.layers - 1)
    if not 0 <= layer < shape.layers:
        raise reject("--layer", layer, f"the model has the layers 0 to {shape.layers - 1}.")
    return layer


def _power_of_two(size: int, least: int, most: int) -> int:
    """The nearest power of two on a logarithmic scale, within bounds."""
    return max(least, min(most, 2 ** round(math.log2(size))))


def _tokens(corpora: dict[str, Any], size: dict[str, int], context: int) -> int:
    """Tokens to train on: the usual number, or fewer if a text is short.

    A text that is too short for a sensible training is named in a warning.

    Raises:
        ConfigError: a text cannot be read, or is too short for the evaluations.
    """
    from saelens_adaptive_ortho.text.corpora import DOMAINS

    found = _sizes(corpora, size["tokens"])
    least = math.ceil(HELD_OUT_CONTEXTS * context / HELD_OUT)
    sensible = max(least, LEAST_TOKENS // (2 * EPOCHS))
    for name, n in found.items():
        if n < least:
            rule = (
                f"holds about {n:,} tokens, and an experiment needs {least:,}: {HELD_OUT:.0%} are "
                f"held out for evaluation, {HELD_OUT_CONTEXTS} contexts of {context} tokens at "
                f"least. From {sensible:,} tokens on it is sensible. Give more text."
            )
            raise reject(f"--{name}", corpora[name]["path"], rule)
    # Half of the training tokens come from each of the two texts.
    smaller = min(DOMAINS, key=lambda name: found[name])
    fitting = min(size["tokens"], 2 * EPOCHS * found[smaller])
    fitting = max(1, fitting // size["batch"]) * size["batch"]
    if found[smaller] < sensible:
        say(
            f"Warning: --{smaller} holds about {found[smaller]:,} tokens; a sensible training "
            f"needs {sensible:,} of each text. training_tokens is {fitting:,}, so that none is "
            f"read more than {EPOCHS} times. Such SAEs explain little, and their evaluations "
            "decide little: give more text if you can."
        )
    return fitting


def _sizes(corpora: dict[str, Any], enough: int) -> dict[str, int]:
    """About how many tokens each text has. Reading stops when they are enough.

    Raises:
        ConfigError: a text cannot be read.
    """
    from saelens_adaptive_ortho.text import mixture
    from saelens_adaptive_ortho.text.corpora import read_documents

    tokens: dict[str, int] = {}
    for name, corpus in mixture.arrange(corpora, "ortho_corpora.{}".format).items():
        characters = 0
        for document in read_documents(corpus, f"ortho_corpora.{name}"):
            characters += len(document)
            if characters > CHARACTERS * enough:
                break
        tokens[name] = characters // CHARACTERS
    return tokens


COMMAND = Command(
    name="init",
    help="Write an experiment for your model and two texts: layer, sizes, tokens, evaluations.",
    options=InitOptions,
    run=run,
    resume="Nothing was written.",
)
