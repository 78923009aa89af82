"""What a score of a response says, as every entry point returns it, every file holds it and every server sends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from srm.views.notebook import response_html

__all__ = ["ScoredResponse", "ScoredSentence", "problem_in"]

# The largest float32: rewards are no larger.
_HUGE = 3.5e38


@dataclass(frozen=True, kw_only=True)
class ScoredSentence:
    """One sentence of a scored response.

    Attributes:
        text: the sentence, trailing white space included, so that sentences join to the response. Of a response of several messages it is
            the assistant's words; what stands between its turns is in none, and counts for the sentence behind it.
        start: offset of its first character in the response; of several messages, in what the chat template writes of them behind the
            prompt (`model.encoder.encode_response(prompt, response).text`).
        end: offset behind its last character.
        reward: `r_i`, what the sentence changed in the model's value.
        weight: `w_i`, its weight in the response reward.
        weighted_reward: `w_i * r_i`, its part of the response reward.
    """

    text: str
    start: int
    end: int
    reward: float
    weight: float
    weighted_reward: float


@dataclass(frozen=True, kw_only=True)
class ScoredResponse:
    """The reward of a response, of its prompt and of each sentence.

    Attributes:
        reward: `R`, the response's reward.
        prompt_reward: `r_0`, which no token earns.
        prompt_weight: `w_0`. The prompt's reward times its weight and the sentences' weighted rewards sum to `reward`.
        sentences: in order; their texts join to the response, or to its beginning where it was cut.
        truncated: whether the response was too long with its prompt, and one of the two was cut.
    """

    reward: float
    prompt_reward: float
    prompt_weight: float
    sentences: tuple[ScoredSentence, ...]
    truncated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The row that `srm-score` writes, without its id; `truncated` is there only where it is true."""
        return {
            "reward": self.reward,
            "prompt_reward": self.prompt_reward,
            "prompt_weight": self.prompt_weight,
            "sentences": [asdict(sentence) for sentence in self.sentences],
            **({"truncated": True} if self.truncated else {}),
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> ScoredResponse:
        """What `to_dict` gave; an id or other columns beside it are ignored."""
        sentences = tuple(ScoredSentence(**sentence) for sentence in row["sentences"])
        return cls(
            reward=row["reward"],
            prompt_reward=row["prompt_reward"],
            prompt_weight=row["prompt_weight"],
            sentences=sentences,
            truncated=row.get("truncated", False),
        )

    def _repr_html_(self) -> str:
        """What notebooks show: sentences coloured by reward, weights as bars."""
        return response_html(self)


def problem_in(reward: Any, response: str | Sequence[int] | Sequence[dict[str, Any]]) -> str | None:
    """What is wrong with a reward that came over the network: None, or words for "a row with ...".

    Args:
        reward: JSON that should be what `to_dict` gives; of ids, without the sentences' text.
        response: the text, the messages or the ids that were scored.
    """
    if not isinstance(reward, dict) or not isinstance(reward.get("sentences"), list):
        return "no list of sentences"
    if (problem := _odd_number(reward, "reward", "prompt_reward", "prompt_weight")) is not None:
        return problem
    # Places in messages are in what the server's chat template makes of them.
    is_written = len(response) > 0 and isinstance(response[0], dict)
    length = _HUGE if is_written else len(response)
    last = 0
    for number, sentence in enumerate(reward["sentences"]):
        if not isinstance(sentence, dict):
            return f"a sentence {number} that is no object"
        if (problem := _odd_number(sentence, "reward", "weight", "weighted_reward")) is not None:
            return f"a sentence {number} with {problem}"
        start, end = sentence.get("start"), sentence.get("end")
        if type(start) is not int or type(end) is not int or not last <= start <= end <= length:
            return f"a sentence {number} at {start!r}:{end!r} of {len(response)}"
        if isinstance(response, str) and sentence.get("text") != response[start:end]:
            return f"a sentence {number} whose text is not in the response there"
        if is_written and not (isinstance(text := sentence.get("text"), str) and len(text) == end - start):
            return f"a sentence {number} whose text is not as long as its place"
        last = end
    return None


def _odd_number(values: dict[str, Any], *names: str) -> str | None:
    for name in names:
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_HUGE < value < _HUGE:
            return f"`{name}` {str(value)[:40]!r}, which is no finite number"
    return None
