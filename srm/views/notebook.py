"""One scored response as a fragment of HTML, for a notebook."""

from __future__ import annotations

from html import escape

from srm.views.scored import Scored, largest_step, level_of, reward_colours

__all__ = ["response_html"]


def response_html(scored: Scored) -> str:
    """One response as a fragment for a notebook: a row a sentence, with reward, weight and text.

    Colours are written beside the text they colour, each background with a foreground that can be read on it, because a notebook's
    light or dark theme is not the browser's.
    """
    scale, level = largest_step(scored), level_of(scored)
    most = max((sentence.weight for sentence in scored.sentences), default=0.0)
    cell = "text-align: left; vertical-align: top; padding: 0.2em 0.6em;"
    head = "".join(f'<th scope="col" style="{cell}">{name}</th>' for name in ("reward", "weight", "sentence"))
    rows = []
    for sentence in scored.sentences:
        colours = reward_colours(sentence.reward - level, scale)
        style = "" if colours is None else f"background: {colours.background}; color: {colours.foreground};"
        width = 4 * sentence.weight / most if most > 0 else 0
        bar = f'<span style="display: inline-block; width: {width:.2f}em; height: 0.6em; background: currentColor; opacity: 0.5;"></span>'
        number = f"{cell} font-variant-numeric: tabular-nums; white-space: nowrap;"
        rows.append(
            f'<tr><td style="{number} text-align: right;">{sentence.reward:+.2f}</td>'
            f'<td style="{number}"><span style="display: inline-block; width: 4.4em;">{bar}</span>{sentence.weight:.0%}</td>'
            f'<td style="{cell} white-space: pre-wrap; {style}">{escape(sentence.text.rstrip())}</td></tr>'
        )
    # Where a page has no doctype, a table would not take its surroundings' colour by itself.
    return (
        '<table style="border-collapse: collapse; color: inherit;">'
        f'<caption style="caption-side: top; {cell}">response reward <b>{scored.reward:+.2f}</b>, '
        f"the prompt's {scored.prompt_reward:+.2f} with weight {scored.prompt_weight:.0%}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
