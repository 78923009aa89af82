"""What the views draw, and the colours they share.

The views ask for these attributes alone, so that what they draw can show itself in a notebook without knowing who made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple, Protocol

__all__ = ["Colours", "Scored", "Sentence", "largest_step", "level_of", "reward_colours"]

# Orange for low and blue for high stay apart in every common colour blindness (after ColorBrewer's PuOr and RdBu).
_LOW, _HIGH = (230, 97, 1), (33, 102, 172)


class Sentence(Protocol):
    """One sentence of a scored response, as `srm.scoring.results.ScoredSentence`."""

    @property
    def text(self) -> str: ...

    @property
    def start(self) -> int: ...

    @property
    def reward(self) -> float: ...

    @property
    def weight(self) -> float: ...


class Scored(Protocol):
    """A scored response, as `srm.scoring.results.ScoredResponse`."""

    @property
    def reward(self) -> float: ...

    @property
    def prompt_reward(self) -> float: ...

    @property
    def prompt_weight(self) -> float: ...

    @property
    def sentences(self) -> Sequence[Sentence]: ...


class Colours(NamedTuple):
    """As CSS and terminals write them: `#rrggbb`.

    Attributes:
        foreground: of the text.
        background: behind it.
    """

    foreground: str
    background: str


def reward_colours(reward: float, scale: float) -> Colours | None:
    """Background from orange (low) over none (near zero) to blue (high), with a foreground that can be read on it.

    The background is set together with the foreground, so that the view does not depend on a light or dark theme.

    Args:
        reward: of a sentence, from its response's level.
        scale: what gets the full colour, in absolute value.

    Returns:
        The two, or None near zero.
    """
    strength = min(abs(reward) / scale, 1.0) if scale > 0 else 0.0
    if strength < 0.1:
        return None
    target = _HIGH if reward > 0 else _LOW
    background = tuple(round(255 + (channel - 255) * strength) for channel in target)
    # Luma of Rec. 601: above it black is the better contrast.
    luma = 0.299 * background[0] + 0.587 * background[1] + 0.114 * background[2]
    return Colours("#000000" if luma > 120 else "#ffffff", "#{:02x}{:02x}{:02x}".format(*background))


def level_of(scored: Scored) -> float:
    """What a sentence's colour is measured from: the median sentence reward of its response, 0 where there are fewer than three.

    A sentence's reward is what it changed. Where values drift through a response, every sentence changes them a little in the same
    direction, and only those that stand out say something.
    """
    rewards = [sentence.reward for sentence in scored.sentences]
    return median(rewards) if len(rewards) > 2 else 0.0


def largest_step(*responses: Scored) -> float:
    """The largest distance of a sentence reward from its response's level: what gets the full colour."""
    return max((abs(sentence.reward - level_of(response)) for response in responses for sentence in response.sentences), default=0.0)
