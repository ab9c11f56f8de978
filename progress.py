"""Progress on stderr: a rich bar with rate, time left and the figures that matter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from .quantities import format_count


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{format_count(speed)} {self.unit}/s" if speed else f"… {self.unit}/s", style="cyan")


class _OneLine(Progress):
    """Shows the first of `choices` of columns that fits into a line of the console, or the last."""

    def __init__(self, choices: Sequence[Sequence[ProgressColumn]], console: Console, disable: bool) -> None:
        self._choices, self._measuring = choices, console  # before the rest: rich draws a first line as it begins
        super().__init__(*choices[0], console=console, disable=disable)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        shown, endless = list(tasks), self._measuring.options.update(max_width=10_000)
        for choice in self._choices:
            self.columns = tuple(choice)
            table = super().make_tasks_table(shown)
            if self._measuring.measure(table, options=endless).maximum <= self._measuring.width:
                return table
        return super().make_tasks_table(shown)


class Bar:
    """A progress bar for work of known or unknown length; a context manager.

    On a terminal it moves, in one line, which in a narrow one has less in it; elsewhere (a log file, CI) it stays silent and the commands' own lines tell what happened. `shown`: False for
    one of several processes that leaves it to another.
    """

    def __init__(self, description: str, total: int | None, unit: str = "rows", shown: bool = True) -> None:
        console = Console(stderr=True)
        begin, count = (SpinnerColumn(), TextColumn("{task.description}")), MofNCompleteColumn()
        long, short, rate, left = BarColumn(), BarColumn(10), _Rate(unit), TimeRemainingColumn()
        figures = TextColumn("{task.fields[figures]}", style="green")
        choices = [
            (*begin, *more)
            for more in (
                (long, count, rate, left, figures), (short, count, rate, left, figures), (count, rate, left, figures), (count, left, figures),
                (short, count, rate, left), (count, rate, left), (count, left), (count,),
            )
        ]  # fmt: skip
        self._progress = _OneLine(choices, console, disable=not (shown and console.is_terminal))
        self._task = self._progress.add_task(description, total=total, figures="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def tell(self, sentence: str) -> None:
        """Print a sentence above the bar."""
        self._progress.console.print(sentence, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def report(self, stage: str, done: int, total: int | None, figures: Mapping[str, Any]) -> None:
        """What the functions of `api` call on the way."""
        self.update(done, shown(figures), description=stage, total=total)

    def update(self, done: int, figures: str = "", description: str | None = None, total: int | None = None) -> None:
        """Set how much is done, and what is shown beside it."""
        self._progress.update(self._task, completed=done, figures=figures, description=description, total=total)


def shown(figures: Mapping[str, Any]) -> str:
    """Figures as they stand beside a bar: "fvu 0.1234  l0 32"."""
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
