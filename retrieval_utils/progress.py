"""What the runner shows while it works: one live line on a terminal, one plain line a notebook elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text


def seconds_left(
    expected: Mapping[str, float], done: Mapping[str, float], current: str, elapsed: float, pending: Sequence[str]
) -> float | None:
    """Seconds until the last notebook ends, or None while nothing is known.

    expected: seconds a notebook took in an earlier run; done: seconds it took in this one. What this run has done so
    far tells how fast this machine is; a notebook without an expectation counts as the mean of those that ran.
    """
    both = [name for name in done if name in expected]
    pace = sum(done[name] for name in both) / sum(expected[name] for name in both) if both else 1.0
    seen = {**{name: pace * seconds for name, seconds in expected.items()}, **done}
    if not seen:
        return None
    mean = sum(seen.values()) / len(seen)
    return max(seen.get(current, mean) - elapsed, 0.0) + sum(seen.get(name, mean) for name in pending)


def clock(seconds: float) -> str:
    """Minutes and seconds, as in 3:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Progress:
    """Context manager over `names`, the notebooks of all seeds in the order in which they will run."""

    def __init__(self, console: Console, names: Sequence[str], expected: Mapping[str, float]) -> None:
        self.console, self.names, self.expected = console, list(names), expected
        self.finished: dict[str, float] = {}
        self.index, self.current, self.seed = 0, "", 0
        self.position, self.cells = 0, 0
        self.began = self.started = time.monotonic()
        self.live = Live(get_renderable=self.line, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def line(self) -> Text:
        """The live line: notebook, cell, minutes gone, minutes left."""
        if not self.current:
            return Text("starting")
        now = time.monotonic()
        pending = self.names[self.index :]
        left = seconds_left(self.expected, self.finished, self.current, now - self.started, pending)
        text = Text.assemble(
            (f"notebook {self.index}/{len(self.names)} ", "bold"),
            (f"{self.current} ", "cyan"),
            f"seed {self.seed} · cell {self.position}/{self.cells} · {clock(now - self.began)} gone",
        )
        if left is not None:
            text.append(" · under a minute left" if left < 60 else f" · about {left / 60:.0f} min left")
        return text

    def start(self, name: str, seed: int) -> None:
        """The next notebook begins."""
        self.index += 1
        self.current, self.seed, self.position, self.cells = name, seed, 0, 0
        self.started = time.monotonic()

    def cell(self, position: int, cells: int) -> None:
        """Cell number `position` of `cells` begins, counted from 1."""
        self.position, self.cells = position, cells

    def skip(self, name: str, seed: int) -> None:
        """The next notebook is done already."""
        self.index += 1
        self.console.print(f"{name} (seed {seed}): done before, skipped", highlight=False)

    def failed(self, name: str, seed: int, left: int) -> None:
        """The current notebook failed, and the `left` ones after it in its run will not begin."""
        self.index += left
        self.console.print(f"{name} (seed {seed}): failed", highlight=False)

    def done(self, name: str, seed: int, seconds: float, peak_memory_mb: float) -> None:
        """The current notebook ended well."""
        self.finished[name] = seconds
        self.console.print(
            f"{name} (seed {seed}): done in {clock(seconds)} min, peak memory {peak_memory_mb:,.0f} MB", highlight=False
        )
