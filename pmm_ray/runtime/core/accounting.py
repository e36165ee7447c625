"""The result of everything in a command's input: found = made + failed + left out on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow
from pmm_ray.runtime.core.storage import printable

# reasons and names that a closing line quotes of each kind
_MOST_QUOTED = 3
ALL_MADE = "nothing failed or was left out"


@dataclass(frozen=True)
class Quoted:
    """How many of one kind there are, and the first of them as they are quoted."""

    count: int
    first: tuple[str, ...]


@dataclass(frozen=True)
class Accounting:
    """The sum of one command.

    Args:
        what: what was found, in the plural: `photographs`, `CAMs`.
        found: everything that was met.
        made: what became a result.
        errors: what failed, by kind of `ErrorRow`.
        left_out: what was passed over on purpose, by reason.
    """

    what: str
    found: int
    made: int
    errors: Mapping[str, Quoted]
    left_out: Mapping[str, Quoted]

    def __post_init__(self) -> None:
        parts = self.made + self.failed + self.passed_over
        assert self.found == parts, f"{self.found} {self.what} found, {parts} accounted for"

    @property
    def failed(self) -> int:
        return sum(group.count for group in self.errors.values())

    @property
    def passed_over(self) -> int:
        return sum(group.count for group in self.left_out.values())

    def after(
        self, errors: Sequence[ErrorRow], left_out: Mapping[str, Sequence[str]] | None = None
    ) -> Accounting:
        """The sum after one more stage, which failed on some of what was made so far.

        Args:
            left_out: names of what it passed over on purpose, by reason.
        """
        passed = _by_reason(left_out or {})
        return Accounting(
            self.what,
            self.found,
            self.made - len(errors) - sum(group.count for group in passed.values()),
            _merged(self.errors, _by_kind(errors)),
            _merged(self.left_out, passed),
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON, for a stage's summary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Accounting:
        """What `as_dict` gave."""
        groups = {
            name: {key: Quoted(g["count"], tuple(g["first"])) for key, g in content[name].items()}
            for name in ("errors", "left_out")
        }
        return cls(content["what"], content["found"], content["made"], **groups)

    def lines(self, where: str) -> tuple[str, str, str]:
        """The three closing lines of a command: how many were made, what was not and why, where.

        The second is `nothing failed or was left out` where that is so.
        """
        done = f"{self.made} of {self.found} {self.what}"
        parts = [
            f"{group.count} {kind} ({_quote(group)})" for kind, group in sorted(self.errors.items())
        ]
        parts += [
            f"{group.count} left out: {reason} ({_quote(group)})"
            for reason, group in sorted(self.left_out.items())
        ]
        rest = f"not: {'; '.join(parts)}" if parts else ALL_MADE
        return done, rest, f"-> {where}"


def account(
    what: str,
    *,
    found: int,
    made: int,
    errors: Sequence[ErrorRow] = (),
    left_out: Mapping[str, Sequence[str]] | None = None,
) -> Accounting:
    """The sum of a command or an import, see `Accounting`.

    Args:
        found: everything that was met, counted where it was listed.
        left_out: names of what was passed over, by reason.
    """
    return Accounting(what, found, made, _by_kind(errors), _by_reason(left_out or {}))


def close(accounting: Accounting, where: str, say: Callable[[str], None]) -> None:
    """Say the closing lines.

    Raises:
        CannotRunError: nothing was made; the first reason is named.
    """
    for line in accounting.lines(where):
        say(line)
    if not accounting.made:
        groups = (*accounting.errors.values(), *accounting.left_out.values())
        reason = next((text for group in groups for text in group.first), "nothing was found")
        raise CannotRunError(
            f"0 of {accounting.found} {accounting.what}, the first reason: {reason}"
        )


def _by_kind(errors: Iterable[ErrorRow]) -> dict[str, Quoted]:
    rows: dict[str, list[str]] = {}
    for row in errors:
        rows.setdefault(row.kind, []).append(f"{row.image_id}: {row.message}")
    return {kind: Quoted(len(texts), tuple(texts[:_MOST_QUOTED])) for kind, texts in rows.items()}


def _by_reason(left_out: Mapping[str, Sequence[str]]) -> dict[str, Quoted]:
    return {
        reason: Quoted(len(names), tuple(printable(name) for name in names[:_MOST_QUOTED]))
        for reason, names in left_out.items()
        if names
    }


def _merged(old: Mapping[str, Quoted], new: Mapping[str, Quoted]) -> dict[str, Quoted]:
    found = dict(old)
    for key, group in new.items():
        earlier = found.get(key, Quoted(0, ()))
        first = (*earlier.first, *group.first)[:_MOST_QUOTED]
        found[key] = Quoted(earlier.count + group.count, first)
    return found


def _quote(group: Quoted) -> str:
    more = ", ..." if group.count > len(group.first) else ""
    return ", ".join(group.first) + more
