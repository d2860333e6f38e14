"""Text before and after unlearning, as the report of a run shows it.

The prompts are passages of held-out text, evenly spaced, and not picked by what the model writes.
"""

from __future__ import annotations

import itertools
from typing import Any

from sae_lens.saes.sae import SAE

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.evaluations.contract import SEED
from saelens_adaptive_ortho.evaluations.unlearning import Settings
from saelens_adaptive_ortho.examples import Example, Examples
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError
from saelens_adaptive_ortho.judging.firing import uncounted_tokens
from saelens_adaptive_ortho.judging.unlearning.choosing import BUDGET, choose
from saelens_adaptive_ortho.judging.unlearning.use import unlearn
from saelens_adaptive_ortho.judging.unlearning.writing import Prompt, write
from saelens_adaptive_ortho.rng import state_kept
from saelens_adaptive_ortho.text.corpora import TokenisedCorpus

PROMPTS = 3  # of each corpus
PROMPT_TOKENS, NEW_TOKENS = 32, 40
SHORTEST = 4  # tokens of a prompt, and of what follows it
LEAST = 0.01  # nats per token: a smaller damage on forget shows nothing


def make_examples(
    context: EvalContext, settings: Settings, budget: float = BUDGET, tokens: int = NEW_TOKENS
) -> Examples:
    """Choose a clamp on training text; the model continues held-out text without and with it.

    If anything fails, the examples hold the reason.

    Args:
        context: the SAE and its workbench.
        settings: settings of the unlearning evaluation.
        budget: largest rise of the loss, in nats per token, on any corpus of the retain side.
        tokens: largest number of tokens that the model writes.
    """
    known: dict[str, Any] = {
        "variant": context.variant,
        "seed": context.seed,
        "sae_digest": context.sae_digest,
    }
    try:
        with state_kept(SEED):
            return Examples(**known, **_written(context, settings, budget, tokens))
    except Exception as error:  # the report is written all the same, and shows the reason
        return Examples(**known, reason=str(error) or repr(error))


def _written(
    context: EvalContext, settings: Settings, budget: float, tokens: int
) -> dict[str, Any]:
    """The fields of the examples, without those that name the SAE."""
    selection = choose(context, budget, settings=settings)
    assert selection.chosen_on is not None
    damage = selection.chosen_on.corpora[0].damage
    if damage < LEAST:
        raise EvaluationError(
            f"the best clamp raises the loss on the text to forget by {damage:.2g} nats per token, "
            f"less than {LEAST:g}, so no text would change. Another variant, a larger --budget or "
            "a longer training may do more"
        )
    model: Any = context.bench.language_model(settings.model_name)
    sae = context.load()
    prompts = {c.domain: held_out_prompts(c, model, sae, tokens) for c in context.corpora}
    longest = model.cfg.n_ctx - 1 - PROMPT_TOKENS if model.cfg.n_ctx else tokens
    tokens = max(1, min(tokens, longest))
    found: list[Example] = []
    for corpus, prompt in ((c, p) for c, some in prompts.items() for p in some):
        before = write(model, sae, prompt, tokens)
        with unlearn(model, sae, selection):
            after = write(model, sae, prompt, tokens)
        found.append(
            Example(
                corpus=corpus,
                prompt=prompt.prompt,
                truth=prompt.continuation or "",
                before=before.text,
                after=after.text,
                loss_before=before.loss or 0.0,
                loss_after=after.loss or 0.0,
            )
        )
    if not found:
        raise reject("context_size", context.bench.context_size, "the passages are too short.")
    return {
        "latents": len(selection.latents),
        "strength": selection.strength,
        "gate": selection.gate,
        "budget": budget,
        "damage": {c.name: c.damage for c in selection.chosen_on.corpora},
        "tokens": tokens,
        "examples": found,
    }


def held_out_prompts(
    corpus: TokenisedCorpus, model: Any, sae: SAE[Any], tokens: int = NEW_TOKENS
) -> list[Prompt]:
    """Up to three prompts from evenly spaced held-out contexts, with how the text goes on.

    A prompt begins where a sentence begins, if one does in the first third of the passage. Passages
    that are too short are left out.
    """
    special = uncounted_tokens(sae, model)
    n = len(corpus.held_out)
    chosen = sorted({number * n // PROMPTS for number in range(PROMPTS)})
    found: list[Prompt] = []
    for ids in corpus.held_out[chosen].tolist():
        passage = _from_sentence(_longest_without(ids, special), model.tokenizer)
        size = min(PROMPT_TOKENS, len(passage) // 2)
        if size < SHORTEST:
            continue
        prompt = model.tokenizer.decode(passage[:size])
        whole = model.tokenizer.decode(passage[: size + tokens])
        if prompt.strip() and whole.startswith(prompt) and whole != prompt:
            found.append(Prompt(prompt, whole.removeprefix(prompt)))
    return found


def _longest_without(ids: list[int], special: set[int]) -> list[int]:
    """The longest stretch of tokens that are not special."""
    groups = itertools.groupby(ids, lambda token: token in special)
    return max((list(group) for inside, group in groups if not inside), key=len, default=[])


def _from_sentence(ids: list[int], tokenizer: Any) -> list[int]:
    """The tokens from the first sentence that begins in their first third, or all of them."""
    for number in range(len(ids) // 3):
        if tokenizer.decode([ids[number]]).rstrip().endswith((".", "!", "?")):
            return ids[number + 1 :]
    return ids
