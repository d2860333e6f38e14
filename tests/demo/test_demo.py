"""The embedded demo: its world is well formed and its model knows it."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho import demo
from saelens_adaptive_ortho.demo.world import (
    DOMAINS,
    LETTERS,
    NEAR_TOPIC,
    PARTS,
    POOLS,
    Domain,
    Entity,
    Part,
    Question,
    World,
    corpus_records,
    format_prompt,
    jsonl,
    prose,
    question_record,
)

MAX_BYTES = 5_000_000


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return json.loads(demo.CARD.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def world(card: dict[str, Any]) -> World:
    return World(card["seed"])


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo.MODEL_DIR)


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(demo.MODEL_DIR, dtype=torch.float32).eval()


def test_world_depends_only_on_the_seed() -> None:
    one, same, other = World(3), World(3), World(4)
    assert one.questions() == same.questions()
    assert one.questions() != other.questions()
    for domain in DOMAINS:
        assert one.passages(domain, 20) == same.passages(domain, 20)
        assert one.passages(domain, 20) != other.passages(domain, 20)
        assert one.passages(domain, 20) != one.passages(domain, 20, stream="another")


def test_questions_are_well_formed(world: World) -> None:
    questions = world.questions()
    assert len({q.question for q in questions}) == len(questions)
    for question in questions:
        assert len(set(question.choices)) == 4
        assert 0 <= question.answer < 4
        assert any(set(question.choices) <= set(pool) for pool in POOLS.values())
    counts = {domain: sum(q.domain == domain for q in questions) for domain in DOMAINS}
    assert counts["forget"] >= 100
    assert counts["retain"] >= 150


def test_right_choice_states_the_fact(world: World) -> None:
    facts = {
        attribute.questions[0].format(s=entity.subject): entity.values[attribute.noun]
        for entity in world.entities
        for attribute in entity.topic.attributes
    }
    for question in world.questions():
        assert question.choices[question.answer] == facts[question.question]


def test_domains_share_words_but_not_entities(world: World) -> None:
    texts = {domain: " ".join(world.passages(domain, 500)) for domain in DOMAINS}
    words = {domain: set(text.replace(".", " ").split()) for domain, text in texts.items()}
    for pool in ("colour", "place", "food", "animal", "symptom"):
        assert len(set(POOLS[pool]) & words["forget"] & words["retain"]) >= 6
    for entity in world.entities:
        other = "retain" if entity.topic.domain == "forget" else "forget"
        assert entity.subject not in texts[other]


def test_prompt_layout() -> None:
    prompt = format_prompt("Why?", ["w", "x", "y", "z"])
    assert prompt == "Why?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    assert format_prompt("Why?", ["w", "x", "y", "z"], "sport").endswith("sport.\n\n" + prompt)


@pytest.mark.parametrize("domain", DOMAINS)
def test_committed_corpus_matches_the_seed(world: World, domain: Domain) -> None:
    committed = demo.CORPORA[f"demo:{domain}"].read_text(encoding="utf-8")
    assert committed == jsonl(corpus_records(world, domain))


@pytest.mark.parametrize("part", PARTS)
def test_committed_part_matches_the_seed(world: World, part: Part) -> None:
    committed = gzip.decompress(demo.CORPORA[f"demo:{part}"].read_bytes())
    assert committed.decode() == jsonl(corpus_records(world, part))


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("forget", "ba77188f1e525784b771e8f109ae9fe85025f422d89e88a5205803cd61113e9d"),
        ("retain", "45a2530d454050a965e546e1eb1b52534c730e809fad19d0b298ff841d9e07b2"),
        ("questions", "0222a1ed2bf9e46427033a2459135ce171ff045b407670f21f04d669278a9ac6"),
        ("probing", "f0b7c38471b3844b9d9f98ec14efccdf2b852d0cc5211cfdaae2d0970b6c47c4"),
    ],
)
def test_files_of_earlier_runs_never_change(name: str, digest: str) -> None:
    """Digests of finished runs contain the text of these files."""
    content = (demo.CORPUS_DIR / f"{name}.jsonl").read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest


def test_parts_divide_the_domains(world: World) -> None:
    assert [e.name for e in world.of("forget_first") + world.of("forget_second")] == [
        e.name for e in world.of("forget")
    ]
    assert len(world.of("forget_first")) == len(world.of("forget_second")) == 11
    assert {e.topic.name for e in world.of("near")} == {NEAR_TOPIC}
    topics = {e.topic.name for e in world.of("retain_rest")}
    assert topics == {e.topic.name for e in world.of("retain")} - {NEAR_TOPIC}
    assert len(topics) == 5


@pytest.mark.parametrize("part", PARTS)
def test_passages_of_a_part_state_nothing_about_other_parts(world: World, part: Part) -> None:
    text = " ".join(world.passages(part, 300)).lower()
    own = {e.name for e in world.of(part)}
    for entity in world.entities:
        assert (f" {entity.name.lower()}" in text) == (entity.name in own)


def test_near_is_the_topic_most_like_the_organisms(world: World) -> None:
    def pairs(texts: list[str]) -> Counter[tuple[str, str]]:
        names = {e.name for e in world.entities}
        found: Counter[tuple[str, str]] = Counter()
        for text in texts:
            words = ["name" if w in names else w for w in text.replace(".", " ").split()]
            found.update(pairwise(words))
        return found

    rng = random.Random(0)
    forget = pairs([prose(world.of("forget"), rng) for _ in range(500)])
    overlap = {}
    for topic in {e.topic.name for e in world.of("retain")}:
        entities = [e for e in world.entities if e.topic.name == topic]
        own = pairs([prose(entities, rng) for _ in range(500)])
        overlap[topic] = sum(
            min(n / own.total(), forget[pair] / forget.total()) for pair, n in own.items()
        )
    assert max(overlap, key=lambda topic: overlap[topic]) == NEAR_TOPIC


def test_corpus_is_written_without_training(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools import build_demo

    monkeypatch.setattr(build_demo, "train", None)
    monkeypatch.setattr("sys.argv", ["build_demo", "--corpus-only", "--out", str(tmp_path)])
    build_demo.main()
    names = {p.name for p in (tmp_path / "corpus").iterdir()}
    assert names == {p.name for p in demo.CORPUS_DIR.iterdir()}
    for name in names - {f"{part}.jsonl.gz" for part in PARTS}:  # zlib's bytes may change
        assert (tmp_path / "corpus" / name).read_bytes() == (demo.CORPUS_DIR / name).read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]


def test_committed_questions_match_the_seed(world: World) -> None:
    committed = demo.QUESTIONS.read_text(encoding="utf-8")
    assert committed == jsonl(question_record(q) for q in world.questions())
    committed = demo.QUESTIONS_SECOND.read_text(encoding="utf-8")
    second = [q for q in world.questions() if not states(q, world.of("forget_first"))]
    assert committed == jsonl(question_record(q) for q in second)
    counts = [sum(q.domain == domain for q in second) for domain in DOMAINS]
    assert counts == [66, 180]


def states(question: Question, entities: list[Entity]) -> bool:
    return any(f" {e.name} " in question.question.replace("?", " ") for e in entities)


def test_tokenizer(tokenizer: Any, world: World) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    assert tokenizer.bos_token == "<|endoftext|>"
    for letter in LETTERS:
        for form in (letter, f" {letter}"):
            assert len(tokenizer.encode(form, add_special_tokens=False)) == 1
    for pool in POOLS.values():
        for value in pool:
            assert len(tokenizer.encode(f" {value}", add_special_tokens=False)) == 1
    for text in [*world.passages("forget", 20), "Unknown words: zebra, café, 12%\n"]:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_model_knows_a_sample_under_all_orders(model: Any, tokenizer: Any, world: World) -> None:
    from tools.build_demo import answers_under_orders

    questions: list[Question] = world.questions()[::10]
    hits = answers_under_orders(model, tokenizer, questions)
    assert hits.shape == (len(questions), 24)
    assert hits.float().mean().item() >= 0.95
    assert hits.all(dim=1).float().mean().item() >= 0.9


def test_model_predicts_passages_of_both_domains(
    model: Any, tokenizer: Any, world: World, card: dict[str, Any]
) -> None:
    from tools.build_demo import held_out_loss

    for domain in DOMAINS:
        numbers = card["domains"][domain]
        loss = held_out_loss(model, tokenizer, world.passages(domain, 4000)[-50:])
        assert loss == pytest.approx(numbers["held_out_loss"], rel=0.15)
        assert loss < 0.6 * numbers["held_out_unigram_loss"]


def test_model_knows_passages_of_all_parts(
    model: Any, tokenizer: Any, world: World, card: dict[str, Any]
) -> None:
    from tools.build_demo import held_out_loss

    for part in PARTS:
        domain = "forget" if part.startswith("forget") else "retain"
        loss = held_out_loss(model, tokenizer, world.passages(part, 100))
        assert loss == pytest.approx(card["domains"][domain]["held_out_loss"], rel=0.15)


def test_card_meets_the_requirement(card: dict[str, Any]) -> None:
    for domain in DOMAINS:
        assert card["domains"][domain]["right_under_all_24_orders"] >= 0.95
        assert card["domains"][domain]["tokens"] >= 150_000


def test_demo_is_small() -> None:
    files = [p for p in Path(demo.DEMO_DIR).rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert sum(p.stat().st_size for p in files) < MAX_BYTES
