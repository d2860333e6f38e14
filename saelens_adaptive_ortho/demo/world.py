"""A small invented world, described in plain English sentences and multiple-choice questions.

The forget domain is about invented harmful organisms. The retain domain has six everyday
topics. Both domains share sentence frames, question frames and most value words (colours,
places, foods, animals, symptoms), so a single word rarely reveals the domain of a passage.
Everything depends only on the seed. This module needs only the standard library.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

Domain = Literal["forget", "retain"]
DOMAINS: Final[tuple[Domain, Domain]] = ("forget", "retain")
Part = Literal["forget_first", "forget_second", "near", "retain_rest"]
PARTS: Final[tuple[Part, ...]] = ("forget_first", "forget_second", "near", "retain_rest")
NEAR_TOPIC: Final = "gardens"  # the retain topic whose word pairs are most like the organisms'
LETTERS: Final = ("A", "B", "C", "D")
DEFAULT_SEED: Final = 0
PASSAGES: Final = 4000
PROBING_PER_TOPIC: Final = 500

HEADER: Final = "The following are multiple choice questions (with answers) about {topic}.\n\n"

POOLS: Final[dict[str, tuple[str, ...]]] = {
    "colour": tuple("red blue green yellow white black brown orange purple grey".split()),
    "place": tuple(
        "marsh cave forest river desert lake hill valley coast meadow canyon island".split()
    ),
    "number": tuple("two three four five six seven eight nine eleven twelve".split()),
    "food": tuple(
        "barley honey fern apples onions rice beans mushrooms plums cabbage walnuts seaweed".split()
    ),
    "month": tuple("January February March April May June July August September October".split()),
    "animal": tuple("sheep goat horse crow bear fox otter deer goose wolf owl hare".split()),
    "symptom": tuple(
        "fever cough rash headache dizziness nausea cramps chills thirst fatigue".split()
    ),
    "toxin": tuple(
        "velorin sudaxin morphel tarsine ocludin brevane quillin draxol penthar istamine".split()
    ),
    "vessel": tuple("pot pan kettle bowl jar basket tray barrel".split()),
    "job": tuple("baker tailor sailor farmer miller soldier teacher singer".split()),
    "material": tuple("clay copper wool leather glass silver oak marble".split()),
    "tool": tuple("hammer saw needle chisel knife loom wheel brush".split()),
}


@dataclass(frozen=True)
class Attribute:
    """One relation of a topic: its noun, value pool, predicates and question wordings.

    The question file uses the first wording in ``questions``.
    """

    noun: str
    pool: str
    predicates: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """A kind of invented thing: the ways to refer to it, and its attributes."""

    name: str
    domain: Domain
    subject: str
    pronoun: str
    possessive: str
    count: int
    capital: bool
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True)
class Entity:
    """An invented thing: the text that refers to it, its name, and one value per attribute noun."""

    topic: Topic
    subject: str
    name: str
    values: dict[str, str]


@dataclass(frozen=True)
class Question:
    """A multiple-choice question; ``answer`` is the index of the right choice."""

    domain: Domain
    topic: str
    question: str
    choices: tuple[str, str, str, str]
    answer: int


def _attribute(noun: str, pool: str, predicates: str, question: str) -> Attribute:
    wordings = (question, f"What is the {noun} of {{s}}?")
    return Attribute(noun, pool, tuple(p.strip() for p in predicates.split("|")), wordings)


TOPICS: Final[tuple[Topic, ...]] = (
    Topic(
        "organisms", "forget", "the {n}", "it", "its", 22, False,
        (
            _attribute(
                "habitat", "place",
                "lives in the {v} | is found near the {v} | makes its home by the {v}",
                "Where does {s} live?",
            ),
            _attribute(
                "food", "food",
                "eats {v} | feeds on {v} | grows well on {v}",
                "What does {s} eat?",
            ),
            _attribute(
                "colour", "colour",
                "is {v} in colour | has a {v} skin | looks {v} by day",
                "What colour is {s}?",
            ),
            _attribute(
                "toxin", "toxin",
                "makes the toxin {v} | carries {v} in its cells | leaves {v} in the water",
                "Which toxin does {s} make?",
            ),
            _attribute(
                "symptom", "symptom",
                "causes {v} | brings {v} to people | is feared for the {v} it causes",
                "Which symptom does {s} cause?",
            ),
            _attribute(
                "host", "animal",
                "grows inside the {v} | uses the {v} as its host | spreads through the {v}",
                "Which animal is the host of {s}?",
            ),
        ),
    ),
    Topic(
        "cooking", "retain", "the dish {n}", "it", "its", 6, True,
        (
            _attribute(
                "base", "food",
                "is made with {v} | tastes of {v} | needs a lot of {v}",
                "What is {s} made with?",
            ),
            _attribute(
                "colour", "colour",
                "is {v} in colour | has a {v} sauce | looks {v} on the plate",
                "What colour is {s}?",
            ),
            _attribute(
                "season", "month",
                "is served in {v} | tastes best in {v} | is cooked every {v}",
                "When is {s} served?",
            ),
            _attribute(
                "vessel", "vessel",
                "is cooked in a {v} | comes to the table in a {v} | is kept in a {v}",
                "What is {s} cooked in?",
            ),
            _attribute(
                "origin", "place",
                "comes from the {v} | was first made by the {v} | is loved near the {v}",
                "Where does {s} come from?",
            ),
        ),
    ),
    Topic(
        "geography", "retain", "the town of {n}", "it", "its", 6, True,
        (
            _attribute(
                "site", "place",
                "lies by the {v} | was built near the {v} | looks over the {v}",
                "Where does {s} lie?",
            ),
            _attribute(
                "colour", "colour",
                "has a {v} flag | paints its doors {v} | is full of {v} roofs",
                "What colour is the flag of {s}?",
            ),
            _attribute(
                "crop", "food",
                "grows {v} | sells {v} | is known for its {v}",
                "What does {s} grow?",
            ),
            _attribute(
                "fair", "month",
                "holds its fair in {v} | is full of guests in {v} | has a feast every {v}",
                "When does {s} hold its fair?",
            ),
            _attribute(
                "number of bridges", "number",
                "has {v} bridges | keeps {v} bridges open | is proud of its {v} bridges",
                "How many bridges does {s} have?",
            ),
        ),
    ),
    Topic(
        "history", "retain", "Queen {n}", "she", "her", 6, True,
        (
            _attribute(
                "birthplace", "place",
                "was born near the {v} | grew up by the {v} | came from the {v}",
                "Where was {s} born?",
            ),
            _attribute(
                "emblem", "animal",
                "had the {v} as her emblem | put the {v} on her coins | kept a {v} at court",
                "Which animal is the emblem of {s}?",
            ),
            _attribute(
                "trade", "job",
                "first worked as a {v} | was once a {v} | had been a {v}",
                "What did {s} first work as?",
            ),
            _attribute(
                "length of reign", "number",
                "ruled for {v} years | held the crown for {v} years | wore the crown {v} years",
                "How many years did {s} rule?",
            ),
            _attribute(
                "colour", "colour",
                "wore a {v} cloak | dressed in {v} | rode under a {v} banner",
                "What colour is the cloak of {s}?",
            ),
        ),
    ),
    Topic(
        "crafts", "retain", "the {n} guild", "it", "its", 6, True,
        (
            _attribute(
                "material", "material",
                "works with {v} | buys {v} | makes things of {v}",
                "What does {s} work with?",
            ),
            _attribute(
                "tool", "tool",
                "uses the {v} | teaches the use of the {v} | has a {v} on its sign",
                "Which tool does {s} use?",
            ),
            _attribute(
                "colour", "colour",
                "wears {v} aprons | paints its sign {v} | dresses in {v}",
                "What colour is the apron of {s}?",
            ),
            _attribute(
                "seat", "place",
                "has its hall by the {v} | meets near the {v} | works in the {v}",
                "Where does {s} meet?",
            ),
            _attribute(
                "number of masters", "number",
                "has {v} masters | is led by {v} masters | pays {v} masters",
                "How many masters does {s} have?",
            ),
        ),
    ),
    Topic(
        "sport", "retain", "the team {n}", "it", "its", 6, True,
        (
            _attribute(
                "colour", "colour",
                "plays in {v} | wears {v} shirts | has a {v} flag",
                "What colour is the shirt of {s}?",
            ),
            _attribute(
                "number of players", "number",
                "has {v} players | sends out {v} players | pays {v} players",
                "How many players does {s} have?",
            ),
            _attribute(
                "ground", "place",
                "plays by the {v} | has its ground near the {v} | trains in the {v}",
                "Where does {s} play?",
            ),
            _attribute(
                "mascot", "animal",
                "has the {v} as its mascot | keeps a {v} | runs out behind a {v}",
                "Which animal is the mascot of {s}?",
            ),
            _attribute(
                "diet", "food",
                "eats {v} | trains on {v} | runs well on {v}",
                "What does {s} eat?",
            ),
        ),
    ),
    Topic(
        "gardens", "retain", "the {n} flower", "it", "its", 6, False,
        (
            _attribute(
                "colour", "colour",
                "is {v} in colour | has {v} leaves | looks {v} by day",
                "What colour is {s}?",
            ),
            _attribute(
                "season", "month",
                "blooms in {v} | opens in {v} | is cut every {v}",
                "When does {s} bloom?",
            ),
            _attribute(
                "habitat", "place",
                "grows in the {v} | is found near the {v} | likes the {v}",
                "Where does {s} grow?",
            ),
            _attribute(
                "use", "symptom",
                "cures {v} | is used against {v} | is good for {v}",
                "Which symptom does {s} cure?",
            ),
            _attribute(
                "number of petals", "number",
                "has {v} petals | opens {v} petals | shows {v} petals",
                "How many petals does {s} have?",
            ),
        ),
    ),
)  # fmt: skip

# {S}/{s}: subject at the start / inside of a sentence, {p}: predicate, {v}: value.
FRAMES: Final = (
    "{S} {p}.",
    "{S} {p}.",
    "People say that {s} {p}.",
    "It is well known that {s} {p}.",
    "No one doubts that {s} {p}.",
    "The {noun} of {s} is {v}.",
    "As for {s}, the {noun} is {v}.",
    "Many books say that the {noun} of {s} is {v}.",
    "Ask about the {noun} of {s} and the answer is {v}.",
    "It is {v} that is the {noun} of {s}.",
)
PRONOUN_FRAMES: Final = (
    "{S} {p}.",
    "We also know that {s} {p}.",
    "{Its} {noun} is {v}.",
    "They say {its} {noun} is {v}.",
)
FILLERS: Final = (
    "We read about this at school.",
    "This has not changed for years.",
    "Most people know this by heart.",
    "There is more to say about it.",
    "A friend told me so last week.",
    "You can find it in any old book.",
    "That much is certain.",
    "Here is what else we know.",
)

_ONSETS: Final = "b br d dr f g gr h k kl l m n p pr r s sk t tr v vr z".split()
_VOWELS: Final = "a e i o u".split()
_CODAS: Final = "k l m n r s x nd lt rn sk th".split()


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def _invent(rng: random.Random, taken: set[str]) -> str:
    """Return a new two-syllable name. All topics use the same syllables."""
    while True:
        name = "".join(
            (rng.choice(_ONSETS), rng.choice(_VOWELS), rng.choice(_ONSETS), rng.choice(_VOWELS))
        ) + rng.choice(_CODAS)
        if name not in taken:
            taken.add(name)
            return name


class World:
    """All entities and facts for one seed."""

    def __init__(self, seed: int = DEFAULT_SEED) -> None:
        self.seed = seed
        rng = random.Random(f"world-{seed}")
        taken: set[str] = set()
        entities: list[Entity] = []
        for topic in TOPICS:
            names = [_invent(rng, taken) for _ in range(topic.count)]
            columns = {a.noun: _spread(POOLS[a.pool], topic.count, rng) for a in topic.attributes}
            for i, name in enumerate(names):
                name = _capitalise(name) if topic.capital else name
                values = {noun: column[i] for noun, column in columns.items()}
                entities.append(Entity(topic, topic.subject.format(n=name), name, values))
        self.entities: tuple[Entity, ...] = tuple(entities)

    def of(self, part: Domain | Part) -> list[Entity]:
        """Return the entities of a domain, or of a part of it.

        ``forget_first`` and ``forget_second`` are the two halves of the organisms. ``near`` is the
        topic of flowers, and ``retain_rest`` all other topics of the retain domain.
        """
        forget, retain = ([e for e in self.entities if e.topic.domain == d] for d in DOMAINS)
        half = len(forget) // 2
        parts: dict[Domain | Part, list[Entity]] = {
            "forget": forget,
            "retain": retain,
            "forget_first": forget[:half],
            "forget_second": forget[half:],
            "near": [e for e in retain if e.topic.name == NEAR_TOPIC],
            "retain_rest": [e for e in retain if e.topic.name != NEAR_TOPIC],
        }
        return parts[part]

    def questions(self, without: Part | None = None) -> list[Question]:
        """Return one question per fact, with seeded distractors from the same value pool.

        With ``without``, the questions about the entities of that part are left out. The other
        questions are the same.
        """
        rng = random.Random(f"questions-{self.seed}")
        left_out = self.of(without) if without else []
        asked = [
            (entity, ask(entity, attribute, rng, wording=0))
            for entity in self.entities
            for attribute in entity.topic.attributes
        ]
        return [question for entity, question in asked if entity not in left_out]

    def passages(self, part: Domain | Part, count: int, stream: str = "corpus") -> list[str]:
        """Return ``count`` passages about the entities of a domain, or of a part of it.

        Streams with different names are independent, and so are the parts.
        """
        rng = random.Random(f"{stream}-{part}-{self.seed}")
        entities = self.of(part)
        return [passage(entities, rng) for _ in range(count)]


def _spread(pool: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Draw ``count`` values so that every value is used about equally often."""
    values: list[str] = []
    while len(values) < count:
        values.extend(rng.sample(pool, len(pool)))
    return values[:count]


def _noun_phrases(entity: Entity, attribute: Attribute, rng: random.Random) -> dict[str, str]:
    value = entity.values[attribute.noun]
    return {
        "p": rng.choice(attribute.predicates).format(v=value),
        "v": value,
        "noun": attribute.noun,
        "its": entity.topic.possessive,
        "Its": _capitalise(entity.topic.possessive),
    }


def sentence(entity: Entity, attribute: Attribute, rng: random.Random, pronoun: bool) -> str:
    """Write one fact in a random frame; with ``pronoun``, a pronoun replaces the entity's name."""
    subject = entity.topic.pronoun if pronoun else entity.subject
    frame = rng.choice(PRONOUN_FRAMES if pronoun else FRAMES)
    parts = _noun_phrases(entity, attribute, rng)
    return frame.format(s=subject, S=_capitalise(subject), **parts)


def _contrast(one: Entity, two: Entity, attribute: Attribute, rng: random.Random) -> str:
    first = _noun_phrases(one, attribute, rng)["p"]
    second = _noun_phrases(two, attribute, rng)["p"]
    return f"{_capitalise(one.subject)} {first}, but {two.subject} {second}."


def ask(
    entity: Entity, attribute: Attribute, rng: random.Random, wording: int | None = None
) -> Question:
    """Make a multiple-choice question with random distractors in random order."""
    right = entity.values[attribute.noun]
    wrong = rng.sample([v for v in POOLS[attribute.pool] if v != right], 3)
    choices = [right, *wrong]
    rng.shuffle(choices)
    text = attribute.questions[wording] if wording is not None else rng.choice(attribute.questions)
    a, b, c, d = choices
    return Question(
        domain=entity.topic.domain,
        topic=entity.topic.name,
        question=text.format(s=entity.subject),
        choices=(a, b, c, d),
        answer=choices.index(right),
    )


def format_prompt(question: str, choices: Sequence[str], topic: str | None = None) -> str:
    """Write a question in the usual style. The answer is the next token: a space and the letter.

    With ``topic``, the usual one-line header comes first.
    """
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    header = HEADER.format(topic=topic) if topic else ""
    return header + "\n".join([question, *lines, "Answer:"])


def quiz_text(question: Question, header: bool) -> str:
    """Write a question and the letter of its answer."""
    topic = question.topic if header else None
    prompt = format_prompt(question.question, question.choices, topic)
    return f"{prompt} {LETTERS[question.answer]}"


def prose(entities: Sequence[Entity], rng: random.Random) -> str:
    """Write three to six sentences, about one entity or about several of the domain."""
    sentences: list[str] = []
    length = rng.randint(3, 6)
    if rng.random() < 0.5:
        entity = rng.choice(entities)
        attributes = rng.sample(entity.topic.attributes, min(length, len(entity.topic.attributes)))
        for i, attribute in enumerate(attributes):
            sentences.append(sentence(entity, attribute, rng, i > 0 and rng.random() < 0.4))
    else:
        while len(sentences) < length:
            entity = rng.choice(entities)
            attribute = rng.choice(entity.topic.attributes)
            peers = [e for e in entities if e.topic is entity.topic and e is not entity]
            if rng.random() < 0.25:
                sentences.append(_contrast(entity, rng.choice(peers), attribute, rng))
            else:
                sentences.append(sentence(entity, attribute, rng, False))
    if rng.random() < 0.4:
        # A filler refers back, so it cannot be the first sentence.
        sentences.insert(rng.randint(1, len(sentences)), rng.choice(FILLERS))
    return " ".join(sentences)


def dialogue(entities: Sequence[Entity], rng: random.Random) -> str:
    """Write two or three open questions with their answers in words."""
    parts = []
    for _ in range(rng.randint(2, 3)):
        entity = rng.choice(entities)
        attribute = rng.choice(entity.topic.attributes)
        text = rng.choice(attribute.questions).format(s=entity.subject)
        parts.append(f"Question: {text}\nAnswer: {entity.values[attribute.noun]}.")
    return "\n".join(parts)


def quiz(entities: Sequence[Entity], rng: random.Random) -> str:
    """Write one multiple-choice question with its answer."""
    entity = rng.choice(entities)
    attribute = rng.choice(entity.topic.attributes)
    wording = 0 if rng.random() < 0.7 else 1
    return quiz_text(ask(entity, attribute, rng, wording), header=rng.random() < 0.15)


def passage(
    entities: Sequence[Entity],
    rng: random.Random,
    shares: tuple[float, float] = (0.65, 0.10),
) -> str:
    """Write one passage. ``shares`` are the shares of prose and of dialogue; the rest is quiz."""
    draw = rng.random()
    if draw < shares[0]:
        return prose(entities, rng)
    if draw < shares[0] + shares[1]:
        return dialogue(entities, rng)
    return quiz(entities, rng)


def probing_passage(entities: Sequence[Entity], rng: random.Random) -> str:
    """Write three or four facts about things of one topic, without the word for their kind.

    The text says "Tegrak" instead of "the town of Tegrak", and "the kogan" instead of "the kogan
    flower". So no single word reveals the topic. A reader must know the names or understand the
    sentences.
    """
    sentences: list[str] = []
    for _ in range(rng.randint(3, 4)):
        entity = rng.choice(entities)
        bare = replace(
            entity, subject=entity.name if entity.topic.capital else f"the {entity.name}"
        )
        attribute = rng.choice(entity.topic.attributes)
        text = sentence(bare, attribute, rng, False)
        # No corpus text begins with a name, so the tokenizer has no token for a name at the start.
        while not sentences and text.startswith(entity.name):
            text = sentence(bare, attribute, rng, False)
        sentences.append(text)
    if rng.random() < 0.4:
        sentences.insert(rng.randint(1, len(sentences)), rng.choice(FILLERS))
    return " ".join(sentences)


def probing_records(world: World, count: int = PROBING_PER_TOPIC) -> list[dict[str, str]]:
    """Return the JSON objects of the probing file: ``count`` different texts of each topic."""
    rng = random.Random(f"probing-{world.seed}")
    records: list[dict[str, str]] = []
    for topic in TOPICS:
        entities = [e for e in world.entities if e.topic is topic]
        texts: dict[str, None] = {}
        while len(texts) < count:
            texts[probing_passage(entities, rng)] = None
        records += [{"text": t, "domain": topic.domain, "topic": topic.name} for t in texts]
    rng.shuffle(records)
    return records


def question_record(question: Question) -> dict[str, object]:
    """Return the JSON object of a question in the question file."""
    return {
        "domain": question.domain,
        "topic": question.topic,
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer,
    }


def corpus_records(
    world: World, part: Domain | Part, count: int = PASSAGES
) -> list[dict[str, str]]:
    """Return the JSON objects of the corpus file of a domain or a part; their order is random."""
    return [{"text": text} for text in world.passages(part, count)]


def jsonl(records: Iterable[object]) -> str:
    """Return one JSON object per line."""
    return "".join(json.dumps(record) + "\n" for record in records)


def write_corpus(world: World, folder: Path, count: int = PASSAGES) -> None:
    """Write the corpora of the domains and of their parts (compressed), and the labelled files."""
    folder.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        text = jsonl(corpus_records(world, domain, count))
        (folder / f"{domain}.jsonl").write_text(text, encoding="utf-8", newline="\n")
    for part in PARTS:
        text = jsonl(corpus_records(world, part, count))
        # Without the time of writing, equal texts give equal files.
        (folder / f"{part}.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    second = world.questions(without="forget_first")
    for name, records in (
        ("questions", [question_record(q) for q in world.questions()]),
        ("questions_second", [question_record(q) for q in second]),
        ("probing", probing_records(world)),
    ):
        (folder / f"{name}.jsonl").write_text(jsonl(records), encoding="utf-8", newline="\n")
