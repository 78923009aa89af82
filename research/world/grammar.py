"""A world of small facts in which every fault of an answer is known: prompts, the answers of its generator, and the oracle.

A prompt lists 6 to 12 facts: `Facts: city Rome pet dog ...`. A good answer says each once: `The city is Rome. The pet is dog. ...`. The
generator damages sentences at known rates, and the oracle finds each fault in any text that a policy writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from srm.data.synthetic.draw import Draw

__all__ = ["FAULTS", "RATES", "WORDS", "Answer", "Facts", "Verdict", "draw_answer", "draw_facts", "judge", "outcome", "reward"]

Fault = Literal["wrong_fact", "contradiction", "off_topic", "rudeness", "repetition"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
Verdict = Literal["good", "wrong_fact", "contradiction", "off_topic", "rudeness", "repetition", "garbage"]
"""Of a sentence; `garbage` is none that the world knows."""
Facts = dict[str, str]
Words = tuple[str, ...]
"""Of a sentence, the full stop included."""

VALUES = {
    "city": ("Rome", "Oslo", "Cairo", "Lima", "Delhi", "Paris"),
    "pet": ("dog", "cat", "hen", "goat", "pony", "fish"),
    "drink": ("tea", "milk", "juice", "cocoa", "water", "cider"),
    "colour": ("red", "blue", "green", "white", "black", "pink"),
    "sport": ("golf", "chess", "tennis", "rugby", "judo", "polo"),
    "month": ("May", "June", "July", "March", "April", "August"),
    "meal": ("soup", "rice", "stew", "pasta", "salad", "toast"),
    "tool": ("saw", "drill", "axe", "spade", "rake", "knife"),
    "tree": ("oak", "pine", "elm", "birch", "palm", "cedar"),
    "job": ("cook", "nurse", "baker", "judge", "pilot", "clerk"),
    "fruit": ("apple", "plum", "mango", "grape", "lemon", "pear"),
    "metal": ("iron", "gold", "zinc", "silver", "copper", "lead"),
}
OFF_TOPIC: tuple[Words, ...] = tuple(
    (*line.split(), ".")
    for line in ("The moon is round", "The sea is deep", "The snow is cold", "The road is long", "The song is old", "The clock is slow")
)
RUDE: tuple[Words, ...] = tuple(
    (*line.split(), ".") for line in ("You are a fool", "You ask too much", "This is a bore", "What a silly waste")
)
WORDS = tuple(
    dict.fromkeys(
        ["Facts", ":", "\n", "The", "is", "not", "."]
        + [word for name, values in VALUES.items() for word in (name, *values)]
        + [word for line in (*OFF_TOPIC, *RUDE) for word in line]
    )
)
"""All of the world's words."""

NUM_FACTS = (6, 12)
RATES = {"fault after a good sentence": 0.25, "fault after a fault": 0.5, "fact left out": 0.05, "one more sentence at the end": 0.15}
"""Of the generator. A fault makes the next one likelier, as in what language models write."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """sentences: their words. verdicts: what the generator did to each."""

    sentences: tuple[Words, ...]
    verdicts: tuple[Verdict, ...]


def draw_facts(draw: Draw) -> Facts:
    """What a prompt asks for, in its order."""
    least, most = NUM_FACTS
    return {name: draw.choice(VALUES[name]) for name in draw.sample(tuple(VALUES), least + draw.index(most - least + 1))}


def draw_answer(facts: Facts, draw: Draw) -> Answer:
    """An answer at the rates of `RATES`; each kind of fault is as likely as the others."""
    sentences: list[Words] = []
    verdicts: list[Verdict] = []
    for name in facts:
        if draw.uniform() < RATES["fact left out"]:
            continue
        rate = RATES["fault after a fault" if verdicts and verdicts[-1] != "good" else "fault after a good sentence"]
        _add(draw.choice(FAULTS) if draw.uniform() < rate else "good", facts, name, sentences, verdicts, draw)
    if draw.uniform() < RATES["one more sentence at the end"]:
        _add(draw.choice(("off_topic", "rudeness", "repetition")), facts, draw.choice(tuple(facts)), sentences, verdicts, draw)
    return Answer(sentences=tuple(sentences), verdicts=tuple(verdicts))


def _add(verdict: Verdict, facts: Facts, name: str, sentences: list[Words], verdicts: list[Verdict], draw: Draw) -> None:
    fresh = [line for line in {"off_topic": OFF_TOPIC, "rudeness": RUDE}.get(verdict, ()) if line not in sentences]
    if verdict == "repetition" and not sentences:
        verdict, fresh = "rudeness", list(RUDE)
    elif verdict in ("off_topic", "rudeness") and not fresh:
        verdict = "repetition"
    if verdict == "repetition":
        sentence = draw.choice(sentences)
    elif verdict in ("off_topic", "rudeness"):
        sentence = draw.choice(fresh)
    elif verdict == "contradiction":
        sentence = ("The", name, "is", "not", facts[name], ".")
    elif verdict == "wrong_fact":
        sentence = ("The", name, "is", draw.choice([value for value in VALUES[name] if value != facts[name]]), ".")
    else:
        sentence = ("The", name, "is", facts[name], ".")
    sentences.append(sentence)
    verdicts.append(verdict)


def judge(facts: Facts, sentences: Sequence[Words]) -> list[Verdict]:
    """The oracle: what each sentence of an answer to `facts` is.

    A fact counts once: said again, or any sentence word for word again, is a repetition. So no answer earns more than its facts.
    """
    verdicts: list[Verdict] = []
    seen: set[Words] = set()
    for sentence in sentences:
        verdicts.append("repetition" if sentence in seen else _judge(facts, sentence))
        seen.add(sentence)
    return verdicts


def _judge(facts: Facts, sentence: Words) -> Verdict:
    if sentence in RUDE:
        return "rudeness"
    if sentence in OFF_TOPIC:
        return "off_topic"
    match sentence:
        case ("The", name, "is", value, ".") if value in VALUES.get(name, ()):
            return "off_topic" if name not in facts else "good" if facts[name] == value else "wrong_fact"
        # That it is not what it is not may be true, and says no fact.
        case ("The", name, "is", "not", value, ".") if value in VALUES.get(name, ()):
            return "contradiction" if facts.get(name) == value else "off_topic"
    return "garbage"


def reward(verdict: Verdict) -> float:
    """What a sentence earns from the oracle."""
    return 1.0 if verdict == "good" else -1.0


def outcome(facts: Facts, verdicts: Sequence[Verdict]) -> float:
    """Good sentences minus faults, over the facts asked for: 1 for a perfect answer, 0 for an empty one.

    It cannot be gamed by length: each fact counts once, every other sentence is a fault, and what is not said is missing.
    """
    return sum(map(reward, verdicts)) / len(facts)
