"""What the commands print goes through here, so that text of data and paths is shown as it stands: no markup, no escape sequences."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from srm.views.visible import visible

__all__ = ["Terminal"]


class Terminal(Console):
    """rich's console without markup: square brackets are square brackets, and what would steer the terminal is written out.

    Our own styles are `rich.text.Text`, or names in `style=`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """A string as it will be shown; tables and titles ask for theirs here too."""
        return super().render_str(visible(text), **settings)
