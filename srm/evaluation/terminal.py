"""A scored pair in the terminal: sentences coloured by reward, weights as bars, damaged sentences marked.

Colour is never the only sign: every sentence carries its signed reward, and damage is written out.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from srm.modeling.scoring import ScoredResponse, ScoredSentence

__all__ = ["render_pair", "render_response", "reward_style", "save_svg"]

# Orange for low and blue for high stay apart in every common colour blindness (after ColorBrewer's PuOr and RdBu).
_LOW, _HIGH = (230, 97, 1), (33, 102, 172)
_BAR_WIDTH = 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def render_pair(
    prompt: str,
    chosen: ScoredResponse,
    rejected: ScoredResponse,
    *,
    damaged: Iterable[Mapping[str, Any]] = (),
) -> RenderableType:
    """Prompt, chosen and rejected response, on one colour scale.

    Args:
        damaged: `{"start", "end", "kind"}` of the sentences of `rejected` that are known to be bad.
    """
    scale = _scale(chosen, rejected)
    right = chosen.reward > rejected.reward
    verdict = Text.assemble(
        ("chosen ranked higher" if right else "rejected ranked higher: wrong", "bold"),
        f", by {chosen.reward - rejected.reward:+.2f}",
    )
    return Group(
        Panel(Text(prompt), title="prompt", title_align="left"),
        render_response("chosen", chosen, scale=scale),
        render_response("rejected", rejected, scale=scale, damaged=damaged),
        verdict,
        _legend(scale),
    )


def render_response(
    title: str, scored: ScoredResponse, *, scale: float | None = None, damaged: Iterable[Mapping[str, Any]] = ()
) -> RenderableType:
    """One response: a line a sentence with reward, weight and text.

    Args:
        scale: the reward, in absolute value, that gets the full colour; the largest of the response where None.
    """
    scale = _scale(scored) if scale is None else scale
    bad = list(damaged)
    most = max((sentence.attention for sentence in scored.sentences), default=0.0)
    table = Table(box=None, padding=(0, 1), expand=True)
    table.add_column("reward", justify="right", no_wrap=True)
    table.add_column("weight", no_wrap=True)
    table.add_column("sentence", ratio=1)
    if bad:
        table.add_column("damaged", style="bold", no_wrap=True)
    for sentence in scored.sentences:
        style = reward_style(sentence.reward, scale)
        # Styled as a span: a style of the whole Text would colour the padding behind it as well.
        text = Text.assemble((" ".join(sentence.text.split()), style))
        mark = [Text("<< " + ", ".join(kinds) if (kinds := _kinds(sentence, bad)) else "")] if bad else []
        table.add_row(Text(f"{sentence.reward:+.2f}", style=style), _bar(sentence.attention, most), text, *mark)
    return Panel(table, title=f"{title}, reward {scored.reward:+.2f}", title_align="left")


def reward_style(reward: float, scale: float) -> Style:
    """Background from orange (low) over none (near zero) to blue (high), with a foreground that can be read on it.

    The background is set together with the foreground, so that the view does not depend on a light or dark terminal.
    """
    strength = min(abs(reward) / scale, 1.0) if scale > 0 else 0.0
    if strength < 0.1:
        return Style()
    target = _HIGH if reward > 0 else _LOW
    background = tuple(round(255 + (channel - 255) * strength) for channel in target)
    # Luma of Rec. 601: above it black is the better contrast.
    luma = 0.299 * background[0] + 0.587 * background[1] + 0.114 * background[2]
    foreground = "#000000" if luma > 120 else "#ffffff"
    return Style(color=foreground, bgcolor="#{:02x}{:02x}{:02x}".format(*background))


def save_svg(view: RenderableType, path: str | Path, *, title: str, width: int = 110) -> None:
    """The view as an SVG picture of a terminal, for a README or a report."""
    # Only the recording is wanted. A fixed width and colour system make the picture the same everywhere.
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor", legacy_windows=False)
    console.print(view)
    console.save_svg(str(path), title=title)


def _scale(*responses: ScoredResponse) -> float:
    return max((abs(sentence.reward) for response in responses for sentence in response.sentences), default=0.0)


def _kinds(sentence: ScoredSentence, damaged: Sequence[Mapping[str, Any]]) -> list[str]:
    end = sentence.start + len(sentence.text.rstrip())
    found = [str(span["kind"]).replace("_", " ") for span in damaged if sentence.start < span["end"] and span["start"] < end]
    return list(dict.fromkeys(found))


def _bar(attention: float, most: float) -> Text:
    eighths = round(8 * _BAR_WIDTH * attention / most) if most > 0 else 0
    full, rest = divmod(eighths, 8)
    bar = ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(_BAR_WIDTH)
    return Text(f"{bar} {attention:4.0%}")


def _legend(scale: float) -> Text:
    steps = [-scale, -scale / 2, 0.0, scale / 2, scale]
    colours = ((f" {step:+.2f} ", reward_style(step, scale)) for step in steps)
    return Text.assemble("colour: sentence reward ", *colours, "; bar: weight")
