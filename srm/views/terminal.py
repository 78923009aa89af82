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

from srm.views.scored import Scored, Sentence, largest_step, level_of, reward_colours
from srm.views.visible import visible

__all__ = ["render_pair", "render_response", "render_responses", "save_svg"]

_BAR_WIDTH = 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def render_pair(
    prompt: str,
    chosen: Scored,
    rejected: Scored,
    *,
    damaged: Iterable[Mapping[str, Any]] = (),
) -> RenderableType:
    """Prompt, chosen and rejected response, on one colour scale.

    Args:
        prompt: its text.
        chosen: the scored response that should win.
        rejected: the other one.
        damaged: `{"start", "end", "kind"}` of the sentences of `rejected` that are known to be bad.
    """
    scale = largest_step(chosen, rejected)
    right = chosen.reward > rejected.reward
    verdict = Text.assemble(
        ("chosen ranked higher" if right else "rejected ranked higher: wrong", "bold"),
        f", by {chosen.reward - rejected.reward:+.2f}",
    )
    return Group(
        _prompt(prompt),
        render_response("chosen", chosen, scale=scale),
        render_response("rejected", rejected, scale=scale, damaged=damaged),
        verdict,
        _legend(scale),
    )


def render_responses(prompt: str, responses: Sequence[tuple[Scored, Iterable[Mapping[str, Any]]]]) -> RenderableType:
    """A prompt and responses to it that are no pair, on one colour scale: what is strong in one is as strong in the next.

    Args:
        prompt: its text.
        responses: each with `{"start", "end", "kind"}` of its sentences that are known to be bad.
    """
    scale = largest_step(*(scored for scored, _ in responses))
    shown = (render_response("response", scored, scale=scale, damaged=damaged) for scored, damaged in responses)
    return Group(_prompt(prompt), *shown, _legend(scale))


def render_response(title: str, scored: Scored, *, scale: float | None = None, damaged: Iterable[Mapping[str, Any]] = ()) -> RenderableType:
    """One response: a line a sentence with reward, weight and text.

    Args:
        title: what the response is called.
        scored: the response.
        scale: the distance from the response's level that gets the full colour; the largest of the response where None.
        damaged: `{"start", "end", "kind"}` of the sentences that are known to be bad.
    """
    scale, level = largest_step(scored) if scale is None else scale, level_of(scored)
    bad = list(damaged)
    most = max([scored.prompt_weight, *(sentence.weight for sentence in scored.sentences)])
    table = Table(box=None, padding=(0, 1), expand=True)
    table.add_column("reward", justify="right", no_wrap=True)
    table.add_column("weight", no_wrap=True)
    table.add_column("sentence", ratio=1)
    if bad:
        table.add_column("damaged", style="bold", no_wrap=True)
    if scored.prompt_weight:
        none = [Text("")] if bad else []
        table.add_row(Text(f"{scored.prompt_reward:+.2f}"), _bar(scored.prompt_weight, most), Text("(the prompt)", style="italic"), *none)
    for sentence in scored.sentences:
        style = _style(sentence.reward - level, scale)
        # Styled as a span: a style of the whole Text would colour the padding behind it as well.
        text = Text.assemble((visible(" ".join(sentence.text.split())), style))
        mark = [Text("<< " + visible(", ".join(kinds)) if (kinds := _kinds(sentence, bad)) else "")] if bad else []
        table.add_row(Text(f"{sentence.reward:+.2f}", style=style), _bar(sentence.weight, most), text, *mark)
    return Panel(table, title=Text(visible(f"{title}, reward {scored.reward:+.2f}")), title_align="left")


def _prompt(prompt: str) -> RenderableType:
    return Panel(Text(visible(prompt)), title="prompt", title_align="left")


def _style(reward: float, scale: float) -> Style:
    colours = reward_colours(reward, scale)
    return Style() if colours is None else Style(color=colours.foreground, bgcolor=colours.background)


def save_svg(view: RenderableType, path: str | Path, *, title: str, width: int = 110) -> None:
    """The view as an SVG picture of a terminal, for a README or a report.

    Args:
        view: from `render_pair` or `render_response`.
        path: the picture.
        title: in its title bar.
        width: in characters.
    """
    # Only the recording is wanted, in a notebook too. A fixed width and colour system make the picture the same everywhere.
    console = Console(
        record=True,
        width=width,
        file=io.StringIO(),
        force_terminal=True,
        force_jupyter=False,
        color_system="truecolor",
        legacy_windows=False,
    )
    console.print(view)
    console.save_svg(str(path), title=title)


def _kinds(sentence: Sentence, damaged: Sequence[Mapping[str, Any]]) -> list[str]:
    end = sentence.start + len(sentence.text.rstrip())
    found = [str(span["kind"]).replace("_", " ") for span in damaged if sentence.start < span["end"] and span["start"] < end]
    return list(dict.fromkeys(found))


def _bar(weight: float, most: float) -> Text:
    eighths = round(8 * _BAR_WIDTH * weight / most) if most > 0 else 0
    full, rest = divmod(eighths, 8)
    bar = ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(_BAR_WIDTH)
    return Text(f"{bar} {weight:4.0%}")


def _legend(scale: float) -> Text:
    steps = [-scale, -scale / 2, 0.0, scale / 2, scale]
    colours = ((f" {step:+.2f} ", _style(step, scale)) for step in steps)
    return Text.assemble(
        "A sentence's reward is what it changed; reward times weight, summed, is the response's.\n"
        "colour: reward from the response's median ",
        *colours,
    )
