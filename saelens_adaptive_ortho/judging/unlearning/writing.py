"""What a model writes after a prompt, and its loss on how the prompt truly goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from sae_lens.saes.sae import SAE
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """Text that the model continues.

    Args:
        prompt: the text.
        continuation: how it truly goes on, with the space in front; None if it is not known.
    """

    prompt: str
    continuation: str | None = None


class Written(NamedTuple):
    """What a model does with a prompt.

    Attributes:
        text: what it writes.
        loss: loss of the true continuation, in nats per token; None without one.
    """

    text: str
    loss: float | None


def encoded(model: Any, sae: SAE[Any], prompt: Prompt) -> tuple[Int[Tensor, " n"], int]:
    """The tokens of prompt and continuation, and the number of those of the prompt.

    BOS comes first if the SAE was trained with it. Where the two texts meet, the tokens are those
    of the whole text: the continuation begins at the first token that differs from those of the
    prompt alone.
    """
    tokenizer = model.tokenizer

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    alone = ids(prompt.prompt)
    whole = ids(prompt.prompt + (prompt.continuation or ""))
    same = [a == b for a, b in zip(alone, whole, strict=False)]
    n = same.index(False) if False in same else len(same)
    wanted = sae.cfg.metadata.prepend_bos is not False and tokenizer.bos_token_id is not None
    bos = [tokenizer.bos_token_id] if wanted else []
    return torch.tensor([*bos, *whole], dtype=torch.int64), len(bos) + n


@torch.no_grad()
def write(
    model: Any,
    sae: SAE[Any],
    prompt: Prompt,
    tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Written:
    """What the model writes after a prompt, and its loss on the true continuation.

    The loss comes from one pass over prompt and continuation.

    Args:
        model: model with hook points.
        sae: the SAE, which says whether BOS comes first.
        prompt: the prompt.
        tokens: largest number of tokens that the model writes.
        temperature: temperature of sampling; 0 takes the most likely token.
        seed: seed of sampling.
    """
    whole, n = encoded(model, sae, prompt)
    whole = whole.to(next(model.parameters()).device)
    sampling = {"do_sample": True, "temperature": temperature}
    torch.manual_seed(seed)
    found = model.generate(
        whole[None, :n],
        max_new_tokens=tokens,
        stop_at_eos=model.tokenizer.eos_token_id is not None,
        prepend_bos=False,
        return_type="tokens",
        verbose=False,
        **(sampling if temperature > 0 else {"do_sample": False}),
    )
    text = model.tokenizer.decode(found[0, n:], skip_special_tokens=True)
    if len(whole) == n:
        return Written(text, None)
    logits = model(whole[None], prepend_bos=False, return_type="logits")[0, n - 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits.float(), whole[n:].to(logits.device))
    return Written(text, float(loss))
