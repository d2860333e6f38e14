"""Make the embedded demo: corpus, tokenizer, trained model, and a card with its numbers.

Run ``python -m tools.build_demo``. On a CPU the result depends only on the seed, the number of
steps, the number of threads and the PyTorch version. With ``--corpus-only`` it writes the texts and
leaves tokenizer, model and card alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import CausalLMOutput

from saelens_adaptive_ortho.demo import DEMO_DIR
from saelens_adaptive_ortho.demo.world import (
    DEFAULT_SEED,
    DOMAINS,
    LETTERS,
    Domain,
    Question,
    World,
    corpus_records,
    format_prompt,
    passage,
    write_corpus,
)

BOS = "<|endoftext|>"
PAD = "<|padding|>"
CONTEXT = 128
WIDTH = 96
LAYERS = 4
HEADS = 4
DEFAULT_STEPS = 1500
BATCH = 16
# About 0.8 / sqrt(width). With the usual 0.02 the model needs many more steps to learn the letters.
INIT_STD = 0.08
PEAK_LR = 3e-3
# Training data contain more questions than the corpus files: comparing choices is hard to learn.
TRAINING_SHARES = (0.35, 0.10)
ANSWER_WEIGHT = 8.0
# Guides are on for this share of the steps; the model then trains without them.
GUIDED_SHARE = 0.6
GUIDE_LAYER = LAYERS - 1
GUIDE_HEAD = 0
HELD_OUT_SHARE = 0.05


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer with one token for every word of the world.

    The vocabulary has the special tokens, all 256 bytes, and each word as one entry. There are no
    merges: with ``ignore_merges`` a known word is one token, and other text is split into bytes.
    """
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    counts: Counter[str] = Counter()
    for domain in DOMAINS:
        for text in world.passages(domain, 10_000, stream="vocabulary"):
            counts.update(piece for piece, _ in splitter.pre_tokenize_str(text))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    entries = [BOS, PAD, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    entries += [form for letter in LETTERS for form in (letter, f"Ġ{letter}")]
    vocabulary = {entry: i for i, entry in enumerate(dict.fromkeys([*entries, *words]))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    core.pre_tokenizer = splitter
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=BOS,
        unk_token=BOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def token_id(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    """Return the token id of a text that is a single token."""
    (single,) = tokenizer.encode(text, add_special_tokens=False)
    return single


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save the tokenizer under the class name that all transformers releases know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8", newline="\n")


def make_model(vocabulary: int) -> GPTNeoXForCausalLM:
    """Return an untrained model; its weights depend on torch's global random state."""
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        initializer_range=INIT_STD,
        use_cache=False,
    )
    # Only this implementation returns the attention patterns that the guides need.
    config._attn_implementation = "eager"
    return GPTNeoXForCausalLM(config)


@dataclass(frozen=True)
class Batch:
    """Token ids, loss weights, and the positions of questions.

    ``binding`` has the columns (row, choice, letter of the choice). ``lookup`` has the columns
    (row, last token of "Answer:", right choice).
    """

    ids: torch.Tensor
    weights: torch.Tensor
    binding: torch.Tensor
    lookup: torch.Tensor


def training_batches(world: World, tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Yield new batches without end.

    Every context starts with BOS and holds passages separated by BOS. The last one is cut off.
    """
    rng = random.Random(f"training-{world.seed}")
    entities = {domain: world.of(domain) for domain in DOMAINS}
    labels = [token_id(tokenizer, letter) for letter in LETTERS]
    answers = [token_id(tokenizer, f" {letter}") for letter in LETTERS]
    while True:
        rows: list[list[int]] = []
        weights: list[list[float]] = []
        binding: list[tuple[int, int, int]] = []
        lookup: list[tuple[int, int, int]] = []
        for row in range(BATCH):
            ids: list[int] = []
            weight: list[float] = []
            while len(ids) < CONTEXT:
                # Domains alternate at random, in proportion to their facts.
                domain: Domain = "forget" if rng.random() < 0.42 else "retain"
                text = passage(entities[domain], rng, TRAINING_SHARES)
                piece = tokenizer.encode(text, add_special_tokens=False)
                start = len(ids) + 1
                ids += [0, *piece]
                weight += [1.0] * (1 + len(piece))
                if piece[-1] not in answers:
                    continue
                weight[-1] = ANSWER_WEIGHT
                if len(ids) <= CONTEXT:
                    # A choice line is letter, full stop, choice.
                    choices = [start + piece.index(label) + 2 for label in labels]
                    binding += [(row, choice, choice - 2) for choice in choices]
                    lookup.append((row, len(ids) - 2, choices[answers.index(piece[-1])]))
            rows.append(ids[:CONTEXT])
            weights.append(weight[:CONTEXT])
        yield Batch(
            torch.tensor(rows), torch.tensor(weights), torch.tensor(binding), torch.tensor(lookup)
        )


def guide_loss(model: GPTNeoXForCausalLM, output: CausalLMOutput, batch: Batch) -> torch.Tensor:
    """Return the sum of three extra losses that show the model how to answer a question.

    Without them, a model of this size stays at chance for thousands of steps. The first loss makes
    one head of the first layer attend from a choice to its letter. The second makes one head of the
    last layer attend from "Answer:" to the right choice. The third makes the residual stream before
    the last layer predict the words of the right choice at "Answer:". The model still learns facts
    and letters from text.
    """
    assert output.attentions is not None
    assert output.hidden_states is not None
    row, choice, letter = batch.binding.T
    bind = output.attentions[0][row, GUIDE_HEAD, choice, letter]
    row, query, right = batch.lookup.T
    look = output.attentions[GUIDE_LAYER][row, GUIDE_HEAD, query, right]
    residual = output.hidden_states[GUIDE_LAYER][row, query]
    logits = model.get_output_embeddings()(model.gpt_neox.final_layer_norm(residual))
    words = F.cross_entropy(logits, batch.ids[row, right])
    return words - (bind + 1e-9).log().mean() - (look + 1e-9).log().mean()


def learning_rate(step: int, steps: int) -> float:
    """Return the rate of a step: linear warm-up over 5% of the steps, then a cosine to 2%."""
    warm = max(1, steps // 20)
    if step < warm:
        return PEAK_LR * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return PEAK_LR * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    model: GPTNeoXForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    steps: int,
) -> None:
    """Train in place with AdamW; the bar shows loss and accuracy of the training answers."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01
    )
    model.train()
    batches = training_batches(world, tokenizer)
    shown_loss, shown_accuracy = math.nan, math.nan
    with tqdm(range(steps), desc="training", mininterval=2.0) as bar:
        for step in bar:
            batch = next(batches)
            guided = step < GUIDED_SHARE * steps
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            output = model(batch.ids, output_attentions=guided, output_hidden_states=guided)
            logits = output.logits[:, :-1]
            target, weight = batch.ids[:, 1:], batch.weights[:, 1:]
            losses = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")
            loss = (losses * weight).sum() / weight.sum()
            if guided:
                loss = loss + guide_loss(model, output, batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 20 == 19:
                hit = (logits.argmax(-1) == target)[weight > 1].float().mean().item()
                plain = losses.mean().item()
                first = math.isnan(shown_loss)
                shown_loss = plain if first else 0.7 * shown_loss + 0.3 * plain
                shown_accuracy = hit if first else 0.7 * shown_accuracy + 0.3 * hit
                bar.set_postfix(loss=f"{shown_loss:.3f}", answers=f"{shown_accuracy:.3f}")


@torch.inference_mode()
def answers_under_orders(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    topic_header: bool = False,
    batch: int = 96,
) -> torch.Tensor:
    """Return a (questions, 24) boolean tensor: whether the answer is right for each order.

    The answer is the most likely of the four letter tokens after "Answer:".
    """
    orders = list(itertools.permutations(range(4)))
    letters = torch.tensor([token_id(tokenizer, f" {x}") for x in LETTERS])
    prompts: list[list[int]] = []
    right: list[int] = []
    for question in questions:
        for order in orders:
            choices = [question.choices[i] for i in order]
            header = question.topic if topic_header else None
            text = format_prompt(question.question, choices, header)
            prompts.append([0, *tokenizer.encode(text, add_special_tokens=False)])
            right.append(order.index(question.answer))
    hits: list[torch.Tensor] = []
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        width = max(len(row) for row in rows)
        # The last real token does not attend to the padding on its right.
        ids = torch.tensor([row + [1] * (width - len(row)) for row in rows])
        last = torch.tensor([len(row) - 1 for row in rows])
        logits = model(ids).logits[torch.arange(len(rows)), last]
        guess = logits[:, letters].argmax(-1)
        hits.append(guess == torch.tensor(right[start : start + batch]))
    return torch.cat(hits).view(len(questions), len(orders))


@torch.inference_mode()
def held_out_loss(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> float:
    """Return the mean loss per token, with one text per context, after BOS."""
    total, tokens = 0.0, 0
    for start in range(0, len(texts), 32):
        encoded = [tokenizer.encode(t, add_special_tokens=False) for t in texts[start : start + 32]]
        rows = [[0, *ids][:CONTEXT] for ids in encoded]
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [1] * (width - len(row)) for row in rows])
        logits = model(ids).logits[:, :-1]
        target = ids[:, 1:].masked_fill(ids[:, 1:] == 1, -100)
        loss = F.cross_entropy(logits.transpose(1, 2), target, reduction="sum")
        total += loss.item()
        tokens += int((target != -100).sum())
    return total / tokens


def unigram_loss(train_ids: Counter[int], test_ids: Sequence[int], vocabulary: int) -> float:
    """Return the mean loss of a unigram model with add-one smoothing."""
    total = train_ids.total() + vocabulary
    return -sum(math.log((train_ids[i] + 1) / total) for i in test_ids) / len(test_ids)


def measure(folder: Path, world: World) -> dict[str, object]:
    """Load the saved model from ``folder`` and measure it in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    result: dict[str, object] = {}
    for domain in DOMAINS:
        questions = [q for q in world.questions() if q.domain == domain]
        hits = answers_under_orders(model, tokenizer, questions)
        headed = answers_under_orders(model, tokenizer, questions, topic_header=True)
        texts = [record["text"] for record in corpus_records(world, domain)]
        cut = len(texts) - round(HELD_OUT_SHARE * len(texts))
        encoded = [tokenizer.encode(t, add_special_tokens=False) for t in texts]
        counts = Counter(itertools.chain.from_iterable(encoded[:cut]))
        tail = list(itertools.chain.from_iterable(encoded[cut:]))
        result[domain] = {
            "questions": len(questions),
            "accuracy_all_orders": round(hits.float().mean().item(), 4),
            "right_under_all_24_orders": round(hits.all(1).float().mean().item(), 4),
            "right_under_all_24_orders_with_header": round(headed.all(1).float().mean().item(), 4),
            "passages": len(texts),
            "tokens": sum(map(len, encoded)),
            "held_out_passages": len(texts) - cut,
            "held_out_loss": round(held_out_loss(model, tokenizer, texts[cut:]), 4),
            "held_out_unigram_loss": round(unigram_loss(counts, tail, len(tokenizer)), 4),
        }
    return result


def build(
    folder: Path, steps: int = DEFAULT_STEPS, seed: int = DEFAULT_SEED, threads: int = 1
) -> dict[str, object]:
    """Make all files of the demo in ``folder`` and return the card."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    started = time.perf_counter()
    world = World(seed)
    write_corpus(world, folder / "corpus")
    tokenizer = make_tokenizer(world)
    model = make_model(len(tokenizer))
    train(model, tokenizer, world, steps)
    save_tokenizer(tokenizer, folder / "model")
    model.eval()
    model.half().save_pretrained(folder / "model")
    # Some releases let only the owner read the weights, and a package keeps file modes.
    (folder / "model" / "model.safetensors").chmod(0o644)
    trained = time.perf_counter() - started
    card: dict[str, object] = {
        "seed": seed,
        "steps": steps,
        "threads": threads,
        "batch": BATCH,
        "context": CONTEXT,
        "layers": LAYERS,
        "width": WIDTH,
        "heads": HEADS,
        "vocabulary": len(tokenizer),
        "parameters": sum(p.numel() for p in model.parameters()),
        "saved_dtype": "float16",
        "torch": torch.__version__.split("+")[0],
        "seconds_training": round(trained, 1),
        "domains": measure(folder, world),
    }
    card["seconds_total"] = round(time.perf_counter() - started, 1)
    text = json.dumps(card, indent=2) + "\n"
    (folder / "card.json").write_text(text, encoding="utf-8", newline="\n")
    return card


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEMO_DIR, help="folder to write to")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS)
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--corpus-only", action="store_true", help="write only the corpus files, and train no model"
    )
    arguments = parser.parse_args()
    if arguments.corpus_only:
        write_corpus(World(arguments.seed), arguments.out / "corpus")
        return
    card = build(arguments.out, arguments.steps, arguments.seed, arguments.threads)
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
