"""Language models: hub names that SAELens knows, local Hugging Face directories, and the demo.

Local directories are loaded without the hub, without remote code, and with safetensors weights.
They are checked before any long work starts.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from sae_lens.load_model import load_model
from sae_lens.util import str_to_dtype
from torch import Tensor, nn
from transformer_lens import HookedRootModule, HookedTransformer
from transformer_lens import loading as tl_loading
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from saelens_adaptive_ortho.demo import MODEL_DIR
from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.files import user_path
from saelens_adaptive_ortho.text import hub

DEMO_MODEL = "demo:model"
DTYPES = "float32, bfloat16, float16, float64"  # of str_to_dtype
# TransformerLens recognises the models that it lists, and few architectures from a directory. For
# all others, its TransformerBridge offers the same hook points around the Hugging Face model.
CONVERTED_FROM_ANY_DIRECTORY = {"GPTNeoXForCausalLM"}
MODEL_CLASSES = ("HookedTransformer", "HookedMamba", "AutoModelForCausalLM")
LOCAL_KWARGS = {"dtype", "torch_dtype", "center_writing_weights"}
# Of each model: its digests by kind, each with the state of the model that it belongs to.
_DIGESTS: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, str]]] = WeakKeyDictionary()


def resolve_model_name(name: str) -> str:
    """The directory of the included demo model for ``demo:model``; otherwise the name itself."""
    return str(MODEL_DIR) if name == DEMO_MODEL else name


def local_model_dir(name: str) -> Path | None:
    """The local directory of a model name, or None for a hub name.

    An absolute path or a name that starts with ``.`` or ``~`` is a directory, even if it does not
    exist. Any other name is a directory if a directory of this name has a ``config.json``.
    """
    path = user_path(resolve_model_name(name))
    looks_local = path.is_absolute() or name.startswith((".", "~"))
    return path if looks_local or os.path.isfile(path / "config.json") else None


def official_name(name: str) -> str:
    """The hub name of a model that TransformerLens also knows by a short one; else ``name``."""
    return tl_loading.make_model_alias_map().get(name.lower(), name)


def check_model(name: str) -> None:
    """Refuse a local model that cannot be loaded. Hub names are checked at loading.

    Raises:
        ConfigError: the directory, its config, its weights or its tokenizer is missing, or the
            demo has no such model.
    """
    if name.startswith("demo:") and name != DEMO_MODEL:
        raise reject("model_name", name, f"no such demo model; known: {DEMO_MODEL}.")
    path = local_model_dir(name)
    # A name of the hub has one slash at most.
    if path is not None and not path.is_dir() or path is None and name.count("/") > 1:
        raise reject("model_name", name, "no such directory. Give a hub name or a local model.")
    if path is None:
        return
    if not (path / "config.json").is_file():
        raise reject("model_name", name, "the directory has no config.json (Hugging Face format).")
    if not any(path.glob("*.safetensors")):
        raise reject(
            "model_name",
            name,
            "the directory has no *.safetensors weights. Save the model with "
            "model.save_pretrained(directory), which writes safetensors.",
        )
    if not (path / "tokenizer.json").is_file() and not (path / "tokenizer_config.json").is_file():
        raise reject(
            "model_name",
            name,
            "the directory has no tokenizer. Save it with tokenizer.save_pretrained(directory).",
        )


def load_language_model(
    name: str,
    device: str = "cpu",
    model_class_name: str = "HookedTransformer",
    model_from_pretrained_kwargs: dict[str, Any] | None = None,
    hook_names: list[str] | None = None,
) -> HookedRootModule:
    """Load a model with hook points and unprocessed weights (no folding, no centring).

    Raises:
        ConfigError: the model does not exist, is gated, is corrupt, or cannot be reached.
    """
    check_model(name)
    if model_class_name not in MODEL_CLASSES:
        raise reject("model_class_name", model_class_name, f"known: {', '.join(MODEL_CLASSES)}.")
    path = local_model_dir(name)
    kwargs = dict(model_from_pretrained_kwargs or {})
    for key in ("dtype", "torch_dtype"):
        if isinstance(kwargs.get(key), str) and not _is_dtype(kwargs[key]):
            field = f"model_from_pretrained_kwargs.{key}"
            raise reject(field, kwargs[key], f"must be one of {DTYPES}.")
    try:
        resolved = resolve_model_name(name)
        if path is not None and model_class_name == "HookedTransformer":
            return _load_unlisted(path, device, kwargs)
        with hub.offline_if_unreachable():
            if model_class_name == "HookedTransformer" and _is_unlisted(resolved):
                return _load_unlisted(resolved, device, kwargs)
            return load_model(model_class_name, resolved, device, kwargs, hook_names)
    except ConfigError:
        raise
    except Exception as error:
        rule = _explain_load_failure(error, path)
        if model_class_name != MODEL_CLASSES[0]:
            rule = f"does not load {name} ({hub.diagnose(error).text}). {MODEL_CLASSES[0]} does."
            raise reject("model_class_name", model_class_name, rule) from error
        raise reject("model_name", name, rule) from error


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights, as :func:`tensors_digest` of its state.

    It is computed once for each model, and again only if a weight was replaced or changed in place.
    """
    tensors = model.state_dict()
    return digest_once(model, "weights", tensors.values(), lambda: tensors_digest(tensors))


def digest_once(
    model: nn.Module,
    kind: str,
    tensors: Iterable[Tensor],
    compute: Callable[[], str],
    settings: object = None,
) -> str:
    """A digest of a model, which is computed again only if what it depends on has changed.

    Args:
        model: the model.
        kind: tells the digests of a model apart.
        tensors: the tensors that the digest depends on. A change is one in place, or another
            tensor.
        compute: computes the digest.
        settings: everything else that it depends on.
    """
    tensors = list(tensors)
    if any(tensor.is_inference() for tensor in tensors):  # such a tensor does not count its changes
        return compute()
    state = settings, [(tensor.data_ptr(), tensor._version) for tensor in tensors]
    digests = _DIGESTS.setdefault(model, {})
    if kind not in digests or digests[kind][0] != state:
        digests[kind] = state, compute()
    return digests[kind][1]


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_plain_model(name: str) -> tuple[Any, Any]:
    """A causal model of transformers in float32, without hook points, and its tokenizer.

    Raises:
        ConfigError: the model does not exist, is gated, is corrupt, or cannot be reached.
    """
    check_model(name)
    path = local_model_dir(name)
    source = tl_loading.make_model_alias_map().get(name, name) if path is None else path
    local = path is not None
    try:
        with nullcontext() if local else hub.offline_if_unreachable():
            model = AutoModelForCausalLM.from_pretrained(
                source,
                local_files_only=local,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
            )
            tokenizer = AutoTokenizer.from_pretrained(
                source, local_files_only=local, trust_remote_code=False
            )
    except Exception as error:
        raise reject("model_name", name, _explain_load_failure(error, path)) from error
    return model.eval(), tokenizer


def _is_dtype(name: str) -> bool:
    return name.removeprefix("torch.") in DTYPES.split(", ")


def _is_unlisted(name: str) -> bool:
    """Whether a name of the form ``owner/model`` is not in TransformerLens's own list."""
    aliases = tl_loading.make_model_alias_map()
    known = {*aliases, *(official.lower() for official in aliases.values())}
    return "/" in name and name.lower() not in known


def _load_unlisted(source: Path | str, device: str, kwargs: dict[str, Any]) -> HookedRootModule:
    """Load a directory, or a hub model that TransformerLens does not list, by transformers."""
    unknown = set(kwargs) - LOCAL_KWARGS
    if unknown:
        raise reject(
            "model_from_pretrained_kwargs",
            sorted(unknown),
            f"such a model takes only {', '.join(sorted(LOCAL_KWARGS))}.",
        )
    local = isinstance(source, Path)
    dtype = kwargs.get("dtype", kwargs.get("torch_dtype", torch.float32))
    dtype = str_to_dtype(dtype) if isinstance(dtype, str) else dtype
    # TransformerLens chooses the Hugging Face class by substrings of the *path* ("bert", "t5"), so
    # it gets the loaded model instead.
    hf_model = AutoModelForCausalLM.from_pretrained(
        source, local_files_only=local, use_safetensors=True, trust_remote_code=False, dtype=dtype
    )
    tokenizer = AutoTokenizer.from_pretrained(
        source, local_files_only=local, trust_remote_code=False
    )
    converted = set(hf_model.config.architectures or []) & CONVERTED_FROM_ANY_DIRECTORY
    if isinstance(source, Path) and converted:
        return _convert(source, hf_model, tokenizer, device, dtype)
    # TransformerBridge has no top-level name. It is imported here, so that only these models need
    # its module.
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        str(source), device="cpu", dtype=dtype, tokenizer=tokenizer, hf_model=hf_model
    )
    bridge.to(device, print_details=False)  # a bridge leaves a loaded model where it is
    return cast(HookedRootModule, bridge)  # same hooks and calls, but another base class


def _convert(
    path: Path, hf_model: Any, tokenizer: Any, device: str, dtype: torch.dtype
) -> HookedRootModule:
    """A HookedTransformer from a loaded model of an architecture that can be converted."""
    with tempfile.TemporaryDirectory() as folder:
        # It also chooses the config class by the path ("gemma", "llama"), so it gets a path without
        # such names.
        neutral_path = Path(folder) / "model"
        neutral_path.symlink_to(path.resolve(), target_is_directory=True)
        cfg = tl_loading.get_pretrained_model_config(str(neutral_path), device=device, dtype=dtype)
    cfg.model_name, cfg.tokenizer_name = path.name, str(path)
    state = tl_loading.get_pretrained_state_dict(str(path), cfg, hf_model, dtype=dtype)
    model = HookedTransformer(cfg, tokenizer, move_to_device=False)
    model.load_and_process_state_dict(
        state,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model.to(device)  # type: ignore[return-value]


def special_tokens(model: HookedRootModule) -> set[int]:
    """Ids of a model's BOS, EOS and padding tokens."""
    tokenizer: Any = model.tokenizer
    return {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}


def check_hook(model: HookedRootModule, hook_name: str) -> None:
    """Refuse a hook point that the model does not have.

    Raises:
        ConfigError: the model has no such hook point. The message names the nearest ones.
    """
    known = list(model.hook_dict)
    if hook_name in known:
        return
    near = difflib.get_close_matches(hook_name, known, n=3, cutoff=0.5)
    hint = f"Nearest: {', '.join(near)}." if near else f"It has {len(known)}, e.g. {known[0]!r}."
    raise reject("hook_name", hook_name, f"the model has no such hook point. {hint}")


def check_context_size(model: HookedRootModule, context_size: int) -> None:
    """Refuse contexts that are longer than the model's context window.

    Raises:
        ConfigError: ``context_size`` is too large for the model.
    """
    n_ctx = getattr(getattr(model, "cfg", None), "n_ctx", None)
    if n_ctx is not None and context_size > n_ctx:
        raise reject("context_size", context_size, f"the model sees {n_ctx} tokens at most.")


class ModelShape(NamedTuple):
    """What the config of a model says: layers, width, longest context, dtype of the weights."""

    layers: int
    width: int
    context_size: int | None
    dtype: str


def model_shape(name: str) -> ModelShape:
    """The shape of a model, from its config alone.

    Raises:
        ConfigError: the model does not exist, or its config cannot be read.
    """
    config = _model_config(name)
    dtype = getattr(config, "dtype", None) or torch.float32
    longest = getattr(config, "max_position_embeddings", None)
    return ModelShape(
        int(config.num_hidden_layers),
        int(config.hidden_size),
        int(longest) if longest else None,
        str(dtype).removeprefix("torch."),
    )


def _model_config(name: str) -> Any:
    check_model(name)
    path = local_model_dir(name)
    try:
        if path is not None:
            config = AutoConfig.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
        else:
            official = tl_loading.make_model_alias_map().get(name, name)
            with hub.offline_if_unreachable():
                config = AutoConfig.from_pretrained(official, trust_remote_code=False)
    except Exception as error:
        raise reject("model_name", name, _explain_load_failure(error, path)) from error
    return config.get_text_config()


def model_bytes(name: str, kwargs: Mapping[str, Any] | None = None) -> int | None:
    """Bytes of a model's weights, from its config alone; None if its parameters are not known.

    TransformerLens holds two embeddings where the model has one for input and output, so that one
    counts twice.

    Args:
        name: the model.
        kwargs: ``model_from_pretrained_kwargs``, which may have a dtype; float32 without it.

    Raises:
        ConfigError: the model does not exist, or its config cannot be read.
    """
    config = _model_config(name)
    try:
        with torch.device("meta"):  # no memory is taken, and no number drawn
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        embedding = config.vocab_size * config.hidden_size
    except Exception:  # an architecture that transformers cannot build from such a config
        return None
    parameters = sum(p.numel() for p in model.parameters())
    if getattr(config, "tie_word_embeddings", False):
        parameters += embedding
    kwargs = kwargs or {}
    dtype = kwargs.get("dtype", kwargs.get("torch_dtype", torch.float32))
    return parameters * (str_to_dtype(dtype) if isinstance(dtype, str) else dtype).itemsize


def hook_width(name: str, hook_name: str, hook_head_index: int | None = None) -> int | None:
    """The width of the activations at a hook, from the config of the model alone.

    Returns:
        The width, or None if the name of the hook does not tell it.

    Raises:
        ConfigError: the model does not exist, or its config cannot be read.
    """
    config = _model_config(name)
    hook = re.sub(r"^blocks\.\d+\.", "", hook_name)
    if re.fullmatch(r"hook_(resid_\w+|\w+_out|embed|in|out)", hook):
        return int(config.hidden_size)
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    if hook == "attn.hook_z":
        return int(head if hook_head_index is not None else heads * head)
    if hook == "mlp.hook_post":
        inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
        return int(inner or 4 * config.hidden_size)
    return None


@torch.no_grad()
def check_d_in(
    model: HookedRootModule,
    hook_name: str,
    hook_head_index: int | None,
    d_in: int,
    model_kwargs: dict[str, Any] | None = None,
) -> None:
    """Run two tokens and compare the activations at the hook with the head and with ``sae.d_in``.

    Raises:
        ConfigError: the width is another one, there is no such head, or the model does not take
            ``model_kwargs``.
    """
    tokens = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
    try:
        _, cache = model.run_with_cache(tokens, names_filter=[hook_name], **(model_kwargs or {}))
    except Exception as error:
        if not model_kwargs:
            raise
        rule = f"the model does not take them ({error})."
        raise reject("model_kwargs", model_kwargs, rule) from error
    acts = cache[hook_name]
    heads = acts.shape[2] if acts.ndim > 3 else 0
    if hook_head_index is not None and not 0 <= hook_head_index < heads:
        has = f"has the heads 0 to {heads - 1}" if heads else "has no heads: leave it out"
        raise reject("hook_head_index", hook_head_index, f"{hook_name} {has}.")
    if heads:
        acts = acts[:, :, hook_head_index] if hook_head_index is not None else acts.flatten(2)
    if acts.shape[-1] != d_in:
        raise reject("sae.d_in", d_in, f"{hook_name} has width {acts.shape[-1]}. Use this value.")


def check_token_ids(model: HookedRootModule, ids: Mapping[str, Sequence[int]]) -> None:
    """Refuse ids that are not in the vocabulary.

    Raises:
        ConfigError: there is one. The message names the field.
    """
    tokenizer: Any = model.tokenizer
    size = len(tokenizer)
    for field, values in ids.items():
        for value in values:
            if value >= size:
                raise reject(field, value, f"the tokenizer has the ids 0 to {size - 1}.")


def _explain_load_failure(error: Exception, path: Path | None) -> str:
    """Explain a failed load and its remedy."""
    if path is not None:
        text = hub.diagnose(error).text
        return f"the model in {path} cannot be read ({text}). Is a file truncated or missing?"
    if unknown := re.match(r"(\S+) not found\. Valid official model names", str(error)):
        near = difflib.get_close_matches(unknown[1].lower(), tl_loading.make_model_alias_map(), 3)
        hint = f"Nearest: {', '.join(near)}. " if near else ""
        return f"TransformerLens knows no such model. {hint}Or give a local model directory."
    return hub.explain_failure(error, "the model", f"a local model directory, or {DEMO_MODEL!r}")
