"""SAEBench RAVEL: can latents change one attribute of an entity and leave the others alone?

SAEBench's hooks expect that a decoder layer returns a tuple. Since transformers 5 it returns a
tensor. This module adapts the layers, so that the hooks still get a tuple.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import snapshot_download
from jaxtyping import Int
from sae_lens.saes.sae import SAE
from sae_lens.util import str_to_dtype
from torch import Tensor
from transformer_lens import loading as tl_loading
from transformers import AutoModelForCausalLM

from saelens_adaptive_ortho.demo.world import FRAMES, World
from saelens_adaptive_ortho.evaluations.contract import AUTO
from saelens_adaptive_ortho.evaluations.ravel import Settings, read_metrics
from saelens_adaptive_ortho.files import user_path, write_json
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.judging.isolation import replaced
from saelens_adaptive_ortho.judging.saebench.session import (
    block_of,
    keep_output,
    prepared_sae,
    session,
)
from saelens_adaptive_ortho.judging.saebench.tasks import PUBLISHED, artifacts_of_model
from saelens_adaptive_ortho.text import hub
from saelens_adaptive_ortho.text.models import DEMO_MODEL, local_model_dir
from saelens_adaptive_ortho.text.reader import ReadError, read_json

DEMO, DEMO_ENTITIES = "demo:facts", {"organisms": ["colour", "food", "host"]}
REPOSITORY = "adamkarvonen/ravel_prompts"
ARCHITECTURES = ("GPTNeoXForCausalLM", "Gemma2ForCausalLM")  # SAEBench finds the layers of these
FILES = ("attribute_to_prompts", "prompt_to_split", "entity_attributes", "entity_to_split")
TRAINING_SHARE = 0.7
LOW_CEILING = 0.1
CAVEAT = (
    "Exchanging the whole activation hardly changes an answer: after this block the model no "
    "longer reads the entity from its last token. The scores say little about the SAE; take one "
    "of an earlier block."
)


def check(settings: Settings) -> None:
    """Read the facts, if they are in a directory.

    Raises:
        EvaluationError: a file cannot be read, or lacks an attribute.
    """
    if settings.source in (AUTO, DEMO, PUBLISHED):
        return
    from sae_bench.evals.ravel.eval_config import RAVELEvalConfig

    attributes = settings.attributes or RAVELEvalConfig().entity_attribute_selection
    _facts(settings.source, attributes)


def run(context: EvalContext, settings: Settings) -> Outcome:
    """Shares of successful interventions, averaged over attributes and then over entity types.

    An intervention replaces an attribute's latents of one entity by those of another entity.

    - ``cause``: the share in which the attribute changes to the other entity's value;
    - ``isolation``: the share in which the other attributes stay the same;
    - ``disentanglement``: the mean of both;
    - ``cause_ceiling``: ``cause`` when the whole activation is replaced. It is 0 at a block after
      which the model no longer reads the entity. There, every SAE has a disentanglement of 0.5.

    Raises:
        EvaluationError: SAEBench does not know the layers of the model, the SAE is not at the end
            of a block, the data set cannot be read, or the model knows too few of the facts.
    """
    from sae_bench.evals.ravel import main
    from sae_bench.evals.ravel.eval_config import RAVELEvalConfig
    from sae_bench.evals.ravel.eval_output import RAVELEvalOutput

    _check_model(context)
    sae = prepared_sae(context)
    block_of(sae)
    source = settings.source
    if source == AUTO:
        source = DEMO if context.bench.model_name == DEMO_MODEL else PUBLISHED
    label = context.bench.model_label
    config = RAVELEvalConfig(
        top_n_entities=settings.top_n_entities,
        full_dataset_downsample=settings.downsample,
        num_pairs_per_attribute=settings.num_pairs_per_attribute,
        train_test_split=TRAINING_SHARE,
        model_name=label,
        llm_dtype=context.bench.dtype,
        llm_batch_size=settings.llm_batch_size,
        learning_rate=settings.learning_rate,
        num_epochs=settings.num_epochs,
        n_generated_tokens=settings.n_generated_tokens,
        random_seed=settings.seed,
    )
    if settings.attributes or source == DEMO:
        config.entity_attribute_selection = settings.attributes or DEMO_ENTITIES
    facts = _facts(source, config.entity_attribute_selection)
    with session(context) as folder, _served(context):
        config.artifact_dir = str(_known_facts(context, config, facts))
        known = _check_known(config)
        ceiling = _cause_ceiling(context, config, facts, sae)
        output = folder / "output"
        results = main.run_eval(
            config, [(context.release, sae)], context.bench.device, str(output), force_rerun=True
        )
        file = output / f"{context.release}_custom_sae_eval_results.json"
        kept = keep_output(context, "ravel", file, RAVELEvalOutput)
    (result,) = results.values()
    scores = {
        name: _finite_or_none(value)
        for name, value in read_metrics(result["eval_result_metrics"]).items()
    }
    return Outcome(
        scores | {"cause_ceiling": ceiling},
        {
            "source": source,
            "attributes": result["eval_result_unstructured"],
            "known_prompts": known,
            "caveat": CAVEAT if ceiling is not None and ceiling < LOW_CEILING else None,
            "sae_bench_file": kept,
        },
    )


def _finite_or_none(value: Any) -> float | None:
    """``value``, or None if it is the mean of no interventions (NaN)."""
    return float(value) if math.isfinite(value) else None


def _check_model(context: EvalContext) -> None:
    architecture = getattr(context.model.cfg, "original_architecture", None)
    if architecture not in ARCHITECTURES:
        raise EvaluationError(
            "SAEBench's RAVEL knows the layers of GPT-NeoX (Pythia) and Gemma-2 models only, and "
            f"{context.bench.model_name} is {architecture or 'of another architecture'}; take "
            "ravel off the list"
        )


def _facts(source: str, attributes: dict[str, list[str]]) -> dict[str, Any]:
    """The content of RAVEL's files, by name: prompts, entities and their attributes.

    Raises:
        EvaluationError: a file cannot be downloaded or read, or lacks an attribute.
    """
    read = _demo_facts().__getitem__ if source == DEMO else _reader(source)
    facts: dict[str, Any] = {}
    for entity, wanted in attributes.items():
        for kind in FILES:
            name = f"ravel_{entity}_{kind}.json"
            try:
                facts[name] = read(name)
            except (KeyError, ReadError) as error:
                raise EvaluationError(
                    f"{source}: cannot read {name} ({error}); does evals.ravel.attributes name "
                    "the right entity types?"
                ) from error
            if not isinstance(facts[name], dict):
                raise EvaluationError(f"{source}: {name} holds no object; see {REPOSITORY}")
        found = facts[f"ravel_{entity}_{FILES[0]}.json"]
        if len(wanted) < 2 or not set(wanted) <= set(found):
            raise EvaluationError(
                f"evals.ravel.attributes: {entity} needs two or more of {', '.join(found)}"
            )
    return facts


def _reader(source: str) -> Callable[[str], Any]:
    """A function that reads a file of the published data set, or of a directory, by name."""
    folder = user_path(source)
    if source == PUBLISHED:
        try:
            with hub.offline_if_unreachable():
                path = snapshot_download(REPOSITORY, repo_type="dataset", allow_patterns="*.json")
        except Exception as error:
            reason = hub.explain_failure(
                error, f"the data set {REPOSITORY}", "a directory as evals.ravel.source"
            )
            raise EvaluationError(reason) from error
        folder = Path(path)
    return lambda name: read_json(folder / name)


def _demo_facts() -> dict[str, Any]:
    """The facts of the demo model, as prompts that end just before the value."""
    ((kind, nouns),) = DEMO_ENTITIES.items()
    entities = [e for e in World().entities if e.topic.name == kind]
    frames = [f.removesuffix(" {v}.") for f in FRAMES if f.endswith(" {v}.") and "{s}" in f]
    prompts = {noun: [f.format(noun=noun, s="%s") for f in frames] for noun in nouns}
    contents = (
        prompts,
        {prompt: "train" for of_noun in prompts.values() for prompt in of_noun},
        {e.subject: {noun: e.values[noun] for noun in nouns} for e in entities},
        {e.subject: "train" for e in entities},
    )
    return {f"ravel_{kind}_{name}.json": c for name, c in zip(FILES, contents, strict=True)}


def _known_facts(context: EvalContext, config: Any, facts: dict[str, Any]) -> Path:
    """The folder of the prompts that the model completes correctly. It is made once."""
    from sae_bench.evals.ravel import main

    def make(folder: Path) -> None:
        for name, content in facts.items():
            write_json(folder / "base" / name, content)
        inside = dataclasses.replace(config, artifact_dir=str(folder))
        for entity, attributes in config.entity_attribute_selection.items():
            every = main.RAVELInstance.create_from_files(
                config=inside,
                entity_type=entity,
                tokenizer=main.AutoTokenizer.from_pretrained(config.model_name),
                data_dir=str(folder),
                model=main.AutoModelForCausalLM.from_pretrained(config.model_name),
                model_name=config.model_name,
                attribute_types=attributes,
                downsample=config.full_dataset_downsample,
            )
            every.create_and_save_filtered_dataset(str(folder), config.top_n_entities)
        shutil.rmtree(folder / "base")

    return artifacts_of_model(context, "ravel", "", make, *_identity(config, facts))


def _identity(config: Any, facts: dict[str, Any]) -> list[Any]:
    return [
        facts,
        config.entity_attribute_selection,
        config.full_dataset_downsample,
        config.top_n_entities,
        config.n_generated_tokens,
        config.llm_batch_size,
        config.random_seed,
    ]


def _cause_ceiling(
    context: EvalContext, config: Any, facts: dict[str, Any], sae: SAE[Any]
) -> float | None:
    """``cause`` when whole activations are replaced.

    An SAE that copies its input measures it, with a mask that chooses every latent.
    """
    from sae_bench.evals.ravel import main, mdbm

    class Copy:
        cfg = SimpleNamespace(hook_layer=block_of(sae), d_sae=sae.cfg.d_in)
        encode = decode = staticmethod(lambda x: x)

    def choose_all(model: Any, tokenizer: Any, config: Any, sae: Any, **_: Any) -> Any:
        chosen = mdbm.MDBM(model, tokenizer, config, sae)
        chosen.binary_mask.data.fill_(1)
        return chosen

    def make(folder: Path) -> None:
        model = main.AutoModelForCausalLM.from_pretrained(config.model_name)
        with replaced(mdbm, "train_mdbm", choose_all):
            scores, _ = main.run_eval_single_sae(
                config,
                Copy(),  # type: ignore[arg-type]
                model,
                context.bench.device,
                str(folder),
            )
        write_json(folder / "ceiling.json", _finite_or_none(scores["cause_score"]))

    parts = [*_identity(config, facts), config.num_pairs_per_attribute]
    folder = artifacts_of_model(context, "ravel", sae.cfg.metadata.hook_name, make, *parts)
    return json.loads((folder / "ceiling.json").read_text())


def _check_known(config: Any) -> dict[str, int]:
    """Number of prompts that the model completes correctly, by entity type and attribute.

    Raises:
        EvaluationError: there are too few prompts for SAEBench's pairs.
    """
    from sae_bench.evals.ravel.instance import RAVELFilteredDataset, get_instance_name

    known: dict[str, int] = {}
    for entity, attributes in config.entity_attribute_selection.items():
        name = get_instance_name(
            entity, config.model_name, config.full_dataset_downsample, config.top_n_entities
        )
        prompts = RAVELFilteredDataset.load(str(Path(config.artifact_dir) / name)).prompts
        for attribute in attributes:
            labels = [p.attribute_label for p in prompts if p.attribute_type == attribute]
            known[f"{entity}: {attribute}"] = len(labels)
            pairs = 2 * min(len(labels), config.num_pairs_per_attribute)
            held_out = pairs - int(pairs * TRAINING_SHARE)
            if len(set(labels)) < 2 or held_out < config.llm_batch_size:
                raise EvaluationError(
                    f"the model completes {len(labels)} prompts for the {attribute} of {entity} "
                    f"rightly, with {len(set(labels))} different answers; needed are two answers, "
                    f"and prompts for {config.llm_batch_size} held-out pairs. Use a model that "
                    "knows more, or lower evals.ravel.llm_batch_size"
                )
    return known


class _Preloaded:
    """Replaces a class in code that calls only its ``from_pretrained``."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = functools.cache(load)

    def from_pretrained(self, *_: object, **__: object) -> Any:
        return self._load()


class _Tokenizer:
    """A tokenizer that puts BOS before each text, as Gemma's does.

    SAEBench relies on this. It locates the entity's last token by the token count of the text
    after it, and this count includes a BOS. With a tokenizer that adds no BOS, SAEBench would
    intervene one token too late.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.bos_token_id = tokenizer.bos_token_id
        if self.bos_token_id is None:
            self.bos_token_id = tokenizer.eos_token_id

    def encode(self, text: str) -> list[int]:
        return [self.bos_token_id, *self._tokenizer.encode(text, add_special_tokens=False)]

    def decode(self, ids: Any) -> str:
        return self._tokenizer.decode(ids)

    def batch_decode(self, ids: Any) -> list[str]:
        return self._tokenizer.batch_decode(ids)


def _left_padded(
    tokenizer: _Tokenizer, input_ids: list[list[int]], pad_to_length: int | None = None
) -> tuple[Int[Tensor, "batch position"], Int[Tensor, "batch position"]]:
    """Left-padded token ids and their mask.

    SAEBench's own function masks every pad token. If BOS and the pad token are the same, it masks
    BOS, too.
    """
    length = pad_to_length or max(map(len, input_ids))
    ids = torch.full((len(input_ids), length), tokenizer.bos_token_id)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(input_ids):
        ids[row, length - len(tokens) :] = torch.tensor(tokens)
        mask[row, length - len(tokens) :] = 1
    return ids, mask


class _Layer:
    """A decoder layer whose hooks get a tuple, and may return one."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self._layer = layer

    def register_forward_hook(self, hook: Callable[..., Any]) -> Any:
        def adapted(layer: torch.nn.Module, inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return hook(layer, inputs, output)
            changed = hook(layer, inputs, (output,))
            return changed if changed is None else changed[0]

        return self._layer.register_forward_hook(adapted)


@contextmanager
def _served(context: EvalContext) -> Iterator[None]:
    """Inside the block, SAEBench gets the Hugging Face model and its tokenizer for any name."""
    from sae_bench.evals.ravel import generation, main
    from sae_bench.sae_bench_utils import activation_collection

    label, layer_of = context.bench.model_label, activation_collection.get_module
    tokenizer = _Tokenizer(context.model.tokenizer)
    with (
        replaced(main, "LLM_NAME_MAP", {label: label}),
        replaced(main, "AutoModelForCausalLM", _Preloaded(lambda: _hugging_face_model(context))),
        replaced(main, "AutoTokenizer", _Preloaded(lambda: tokenizer)),
        replaced(main, "custom_left_padding", _left_padded),
        replaced(generation, "custom_left_padding", _left_padded),
        replaced(activation_collection, "get_module", lambda *args: _Layer(layer_of(*args))),
    ):
        yield


def _hugging_face_model(context: EvalContext) -> Any:
    """The Hugging Face model for SAEBench's hooks.

    It uses a cache of keys and values, and generation does not stop at EOS.
    """
    name, bench = context.bench.model_name, context.bench
    path = local_model_dir(name)
    try:
        with nullcontext() if path else hub.offline_if_unreachable():
            model: Any = AutoModelForCausalLM.from_pretrained(
                path or tl_loading.get_official_model_name(name),
                local_files_only=path is not None,
                trust_remote_code=False,
                dtype=str_to_dtype(bench.dtype),
                attn_implementation="eager",
            )
    except Exception as error:
        reason = hub.explain_failure(error, f"the model {name}", "a local model directory")
        raise EvaluationError(reason) from error
    # SAEBench intervenes only while the model reads the prompt, and takes the last
    # n_generated_tokens as the answer.
    model.config.use_cache = model.generation_config.use_cache = True
    model.generation_config.eos_token_id = None
    return model.to(bench.device).eval().requires_grad_(False)
