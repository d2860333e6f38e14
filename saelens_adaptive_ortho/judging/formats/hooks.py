"""Modules of Hugging Face models, as hook points of TransformerLens."""

from __future__ import annotations

import re

LAYER = re.compile(r"(?:\w+\.)*?(?:layers|h|blocks)\.(\d+)(?:\.(\w+))?")
# Whether their output is at this hook depends on the model: some have a norm between the two.
SUBLAYERS = {
    "mlp": "hook_mlp_out",
    "attn": "hook_attn_out",
    "self_attn": "hook_attn_out",
    "attention": "hook_attn_out",
}


def hook_of_module(module: str) -> tuple[str | None, str]:
    """The hook point at the output of a module, or None and the advice for the user.

    The output of a layer (``layers.5``, ``h.5``) is the residual stream behind it,
    ``blocks.5.hook_resid_post``, in every model. The output of an MLP or an attention is at a hook
    point only in models without a norm behind it. Nothing is guessed there.
    """
    found = LAYER.fullmatch(module)
    if found is not None and found[2] is None:
        return f"blocks.{found[1]}.hook_resid_post", ""
    if found is not None and found[2] in SUBLAYERS:
        hook = f"blocks.{found[1]}.{SUBLAYERS[found[2]]}"
        advice = f"the SAE is for the output of {module}. Give its hook point as --hook: {hook}"
        return None, f"{advice}, if the model has no norm behind this module."
    return None, (
        f"{module!r} names no layer, so nothing tells where the SAE reads. Give its hook point as "
        "--hook, e.g. blocks.5.hook_resid_post."
    )


NO_HOOK = "the folder does not say where the SAE reads. Give --hook, e.g. blocks.5.hook_resid_post."
