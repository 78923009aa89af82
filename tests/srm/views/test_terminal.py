"""The coloured view: numbers and marks without colour, readable colours with it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.color import Color
from rich.console import Console, RenderableType
from rich.style import Style

from srm.scoring.results import ScoredResponse, ScoredSentence
from srm.views.scored import largest_step, level_of, reward_colours
from srm.views.terminal import render_pair, render_response, render_responses, save_svg


def _scored(reward: float, *sentences: tuple[str, float, float]) -> ScoredResponse:
    scored, start = [], 0
    for text, sentence_reward, weight in sentences:
        end = start + len(text)
        scored.append(
            ScoredSentence(text=text, start=start, end=end, reward=sentence_reward, weight=weight, weighted_reward=weight * sentence_reward)
        )
        start = end
    return ScoredResponse(reward=reward, prompt_reward=0.0, prompt_weight=0.0, sentences=tuple(scored))


CHOSEN = _scored(0.9, ("Boil the water. ", 0.4, 0.25), ("Add [salt].", 1.5, 0.5))
REJECTED = _scored(-1.1, ("Boil the water. ", 0.4, 0.1), ("You are a fool.", -2.5, 0.8))
DAMAGED = [{"start": 16, "end": 31, "kind": "off_topic"}]


def _print(view: RenderableType, **settings: object) -> str:
    console = Console(file=io.StringIO(), width=90, **settings)
    console.print(view)
    return console.file.getvalue()


def test_view_says_everything_without_colour() -> None:
    text = _print(render_pair("How do I cook pasta?", CHOSEN, REJECTED, damaged=DAMAGED), no_color=True)
    lines = text.splitlines()
    assert "How do I cook pasta?" in text
    assert "chosen, reward +0.90" in text
    assert "rejected, reward -1.10" in text
    assert "chosen ranked higher, by +2.00" in text
    bad = next(line for line in lines if "You are a fool." in line)
    assert "-2.50" in bad
    assert "80%" in bad
    assert "<< off topic" in bad
    assert sum("<<" in line for line in lines) == 1
    # Square brackets are text, not markup.
    assert "+1.50" in next(line for line in lines if "Add [salt]." in line)


def test_responses_to_one_prompt_share_a_scale() -> None:
    """A slip in one answer must not look like the insult in another."""
    calm = _scored(0.9, ("Boil the water. ", 0.4, 0.5), ("Wait.", -0.3, 0.3), ("Add salt.", 0.4, 0.2))
    text = _print(render_responses("How do I cook pasta?", [(calm, ()), (REJECTED, DAMAGED)]), no_color=True)
    assert text.count("How do I cook pasta?") == 1
    assert "-2.50  -1.25  +0.00  +1.25  +2.50" in text
    assert "<< off topic" in text
    coloured = _print(render_responses("Pasta?", [(calm, ()), (REJECTED, ())]), force_terminal=True, color_system="truecolor")
    colours = [reward_colours(step, 2.5) for step in (-0.7, -2.5)]
    for sentence, expected in zip(("Wait.", "You are a fool."), colours, strict=True):
        assert expected is not None
        red, green, blue = (int(expected.background[at : at + 2], 16) for at in (1, 3, 5))
        assert f"48;2;{red};{green};{blue}m{sentence}" in coloured


def test_rows_add_up_to_the_reward() -> None:
    scored = replace(CHOSEN, prompt_reward=-0.5, prompt_weight=0.8)
    rows = [line.split() for line in _print(render_response("answer", scored), no_color=True).splitlines() if "%" in line]
    assert "(the prompt)" in " ".join(rows[0])
    parts = [float(row[1]) * float(next(word for word in row if word.endswith("%")).rstrip("%")) / 100 for row in rows]
    assert sum(parts) == pytest.approx(-0.5 * 0.8 + 0.4 * 0.25 + 1.5 * 0.5)


def test_colour_is_measured_from_the_responses_own_level() -> None:
    """Values that drift through a good response colour none of its sentences; what stands out is coloured."""
    drifting = _scored(0.0, *((f"Sentence {i}. ", -0.3, 0.5) for i in range(4)))
    assert level_of(drifting) == -0.3
    assert largest_step(drifting) == 0
    mixed = _scored(0.0, ("One. ", -0.3, 0.5), ("Two. ", -0.3, 0.5), ("Bad. ", -2.3, 0.5), ("Four. ", -0.2, 0.5))
    assert largest_step(mixed, drifting) == pytest.approx(2.0)
    console = Console(file=io.StringIO(), width=90, force_terminal=True, color_system="truecolor")
    console.print(render_response("answer", mixed))
    coloured = [line for line in console.file.getvalue().splitlines() if "48;2;" in line]
    assert len(coloured) == 1
    assert "Bad." in coloured[0]
    # Two sentences have no level of their own: one would always be low.
    assert level_of(_scored(0.0, ("One. ", 1.0, 1.0), ("Two.", 2.0, 1.0))) == 0


def test_wrong_ranking_is_said() -> None:
    assert "rejected ranked higher: wrong, by -2.00" in _print(render_pair("?", REJECTED, CHOSEN))


def test_attention_bars_are_proportional() -> None:
    lines = _print(render_response("answer", REJECTED), no_color=True).splitlines()
    first, second = (next(line for line in lines if text in line) for text in ("Boil", "fool"))
    # 0.8 is the largest and fills the bar of 8 cells; 0.1 is an eighth of it.
    assert second.count("█") == 8
    assert first.count("█") == 1


def _style(reward: float, scale: float) -> Style:
    colours = reward_colours(reward, scale)
    assert colours is not None
    return Style(color=colours.foreground, bgcolor=colours.background)


def test_colour_has_a_sign_and_grows_with_the_reward() -> None:
    low, little, high = (_style(reward, 2.0) for reward in (-2.0, -1.0, 2.0))
    red, _, blue = _rgb(low.bgcolor)
    assert red > blue
    red, _, blue = _rgb(high.bgcolor)
    assert blue > red
    assert sum(_rgb(little.bgcolor)) > sum(_rgb(low.bgcolor))
    assert reward_colours(0.1, 2.0) is None
    assert reward_colours(0.0, 0.0) is None


@pytest.mark.parametrize("share", [-1, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1])
def test_text_can_be_read_on_its_colour(share: float) -> None:
    style = _style(share, 1.0)
    # 4.5 : 1 is the contrast that WCAG AA asks of text.
    assert _contrast(style.color, style.bgcolor) >= 4.5


def test_blue_and_orange_stay_apart_for_colour_blind_eyes() -> None:
    low, high = (_rgb(_style(reward, 1.0).bgcolor) for reward in (-1.0, 1.0))
    # Machado et al. 2009, severity 1.0: what protanopes and deuteranopes see.
    protan = ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052))
    deutan = ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969))
    for matrix in (protan, deutan):
        a, b = ([sum(m * c for m, c in zip(row, colour, strict=True)) for row in matrix] for colour in (low, high))
        assert sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 > 100


def test_svg_is_well_formed_and_stable(tmp_path: Path) -> None:
    view = render_pair("How?", CHOSEN, REJECTED, damaged=DAMAGED)
    for name in ("a.svg", "b.svg"):
        save_svg(view, tmp_path / name, title="one pair")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    text = " ".join("".join(root.itertext()).replace("\xa0", " ").split())
    assert "one pair" in text
    assert "You are a fool." in text
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_picture_is_no_output_of_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    shown: list[object] = []
    monkeypatch.setattr("rich.jupyter.display", lambda *view: shown.append(view))
    save_svg(render_response("response", CHOSEN), tmp_path / "one.svg", title="one")
    assert shown == []


def _rgb(color: Color | None) -> tuple[int, int, int]:
    assert color is not None
    return tuple(color.get_truecolor())


def _contrast(a: Color | None, b: Color | None) -> float:
    def luminance(color: Color | None) -> float:
        channels = [channel / 255 for channel in _rgb(color)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
