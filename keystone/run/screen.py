"""The terminal of a run: lines of the story that stay, and one status line below them. Plain lines off a terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Final, Self

from keystone.run.scenes import STYLES, line_of, status_line

PLAIN_STATUS_EVERY_S: Final = 5.0


class StoryScreen:
    """``with StoryScreen() as screen``. Everything goes to stdout; a reader that went away ends the showing, not the run."""

    def __init__(self, *, shows_story: bool) -> None:
        from rich.console import Console

        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a terminal without these signs gets question marks, and the run goes on
        self._console = Console(highlight=False, soft_wrap=True)
        self._shows_story = shows_story
        self._live: Any = None
        self._status_at_s = float("-inf")
        self._is_gone = False

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()

    def say(self, line: str, style: str | None = None) -> None:
        """A line that stays."""
        from rich.text import Text

        if self._is_gone:
            return
        try:
            self._console.print(Text(line, style=style or ""))
            sys.stdout.flush()
        except (OSError, SystemExit):  # rich turns a stdout that nobody reads into nowhere, and would end the program
            self._is_gone = True

    def tell(self, scenes: list[dict[str, Any]]) -> None:
        """Lines of the story."""
        if self._shows_story:
            for scene in scenes:
                self.say(line_of(scene), STYLES[scene["what"]])

    def status(self, at_s: float, seen: dict[str, Any]) -> None:
        """The state of the run; ``at_s`` rises from call to call."""
        from rich.text import Text

        if self._live is not None:
            self._live.update(Text(status_line(seen), style="dim"))
        elif at_s - self._status_at_s >= PLAIN_STATUS_EVERY_S:
            self._status_at_s = at_s
            self.say(status_line(seen))
