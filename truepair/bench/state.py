"""What a bench keeps of each cell: settings, how far it is, what it found; whether that is still what is asked."""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from truepair.bench.cells import unused
from truepair.errors import UserError
from truepair.pairs.columns import whole

Status = Literal["done", "running", "stopped", "failed", "open"]
PARTS = {"cell", "line", "kind", "rate", "seed", "figures", "detection", "cost", "made", "settings"}  # of a result


@dataclass
class Progress:
    """A cell that is not done: what was spent on it, what its commands printed so far, its last words if it failed."""

    settings: dict[str, Any]  # none before it was begun
    seconds: float = 0.0
    attempts: int = 0
    printed: dict[str, Any] = field(default_factory=dict)  # by command
    status: Status = "stopped"  # "running" where somebody is at work, or was when all was killed outright
    said: str = ""
    commits: list[str] = field(default_factory=list)  # at its beginnings and ends, each once
    calls: list[str] = field(default_factory=list)  # commands of the benches that had it at work, each once

    def note(self, commit: str, call: str) -> None:
        """Remember what makes the cell now."""
        self.commits = list(dict.fromkeys([*self.commits, commit]))
        self.calls = list(dict.fromkeys([*self.calls, call]))


@dataclass(frozen=True)
class CellFiles:
    """Where a cell's things lie, all under WORK/cells. `result` alone makes a cell done."""

    folder: Path
    name: str

    @property
    def run(self) -> Path:
        """The run's directory."""
        return self.folder / self.name

    @property
    def result(self) -> Path:
        """What was found, once it is done."""
        return self.folder / f"{self.name}.json"

    @property
    def progress(self) -> Path:
        """What is known before."""
        return self.folder / f"{self.name}.progress.json"

    @property
    def recipe(self) -> Path:
        """The run's complete configuration."""
        return self.folder / f"{self.name}.toml"

    @property
    def log(self) -> Path:
        """What the commands said, of all attempts."""
        return self.folder / f"{self.name}.log"

    @property
    def printed(self) -> Path:
        """Standard output of the command that is running."""
        return self.folder / f".{self.name}.out"

    def status(self) -> Status:
        """How far the cell is, by its files."""
        if self.result.is_file():
            return "done"
        found = self.load_progress()
        return found.status if found else "open"

    def load_result(self) -> dict[str, Any] | None:
        """What a finished cell found; None if it is not done."""
        if not self.result.is_file():
            return None
        found = _object(self.result)
        if missing := PARTS - found.keys():
            raise UserError(_unreadable(self.result, f"it lacks {min(missing)}"))
        return found

    def load_progress(self) -> Progress | None:
        """How far an unfinished cell is; None if it was never begun."""
        if not self.progress.is_file():
            return None
        try:
            return Progress(**_object(self.progress))
        except TypeError as error:  # a field that is missing, or of another truepair
            raise UserError(_unreadable(self.progress, str(error))) from None

    def save(self, progress: Progress) -> None:
        """Keep how far the cell is."""
        write_json(self.progress, vars(progress))

    def checked(
        self, settings: dict[str, Any], default: Mapping[str, Any], unknown: Collection[str] = ()
    ) -> dict[str, Any] | None:
        """The result of a cell that is done, None if it is not. Raises UserError if it was made by other settings.

        A cell that is begun is looked at likewise, as far as something rests on a setting: it must not go on as
        another. unknown: settings of which nobody can say what they should be.
        """
        result, progress = self.load_result(), self.load_progress()
        made = result["settings"] if result else progress.settings if progress else {}
        if not made:
            return result
        ignored = set(unknown)
        if progress and not result:
            ignored |= unused(made, settings, progress.printed)
        if different := difference(made, settings, default, ignored):
            raise UserError(
                f"cell {self.name} in {self.folder.parent} was made with {different}; choose another --out, or remove "
                f"{self.run} and {self.run}.* to have it made anew"
            )
        return result

    def finish(self, result: dict[str, Any]) -> None:
        """The cell is done."""
        write_json(self.result, result)
        self.progress.unlink(missing_ok=True)
        self.printed.unlink(missing_ok=True)


def difference(
    made: Mapping[str, Any], asked: Mapping[str, Any], default: Mapping[str, Any], ignored: Collection[str] = ()
) -> str:
    """The first setting in which a cell is not what is asked for, "" if there is none; `ignored` do not count.

    A setting that the cell's truepair did not have yet was at its default there.
    """
    before = {name: default[name] for name in asked if name in default} | dict(made)
    for name in dict.fromkeys([*asked, *before]):
        if name not in ignored and before.get(name) != asked.get(name):
            return f"{name} = {before.get(name)!r}, where the grid now asks for {asked.get(name)!r}"
    return ""


def known(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all; what is no finite number becomes null."""
    text = json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    with whole(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(_unreadable(path, str(error))) from None
    if not isinstance(found, dict):
        raise UserError(_unreadable(path, "it holds no object"))
    return found


def _unreadable(path: Path, why: str) -> str:
    return f"{path} cannot be read ({why}); remove it to have the cell made anew"
