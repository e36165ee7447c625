"""The page of `claims.py`: its table between the markers of a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MARKERS = ("<!-- claims: begin -->", "<!-- claims: end -->")


def write_page(results: Mapping[str, Any], document: Path | None) -> str:
    """The text; also between the markers of a document, whose other words stay."""
    text = "\n".join(page(results))
    if document is not None:
        before, _, rest = document.read_text(encoding="utf-8").partition(MARKERS[0])
        _, _, after = rest.partition(MARKERS[1])
        document.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}", encoding="utf-8")
    return text


def page(results: Mapping[str, Any]) -> Iterator[str]:
    """The lines."""
    about = results["about"]
    made = {unit["commit"] for units in results["seeds"].values() for unit in units.values()}
    yield f"{about['date']}, commit {', '.join(sorted(made))}, {about['machine']}:"
    yield ""
    yield f"    {about['command']}"
    yield ""
    yield "| claim | paper | ours | interval | before, after | seeds | verdict |"
    yield "|---|---|---|---|---|---|---|"
    yield from (line(row) for row in results["rows"])
    yield ""
    yield "Before, after. *Right*: % of the objects' pixels that have their class. *Marked*: pixels"
    yield "of objects in the masks, % of those in the truth. Gains on photographs of one class and"
    yield "of several, with their number:"
    yield ""
    yield "| claim | exponent | right | marked | classes that change most | one class | several |"
    yield "|---|---|---|---|---|---|---|"
    yield from (details(row, results) for row in results["rows"] if row["seeds"])
    yield ""
    yield "| segmenter | seed | loss at the end, all heads | images under limited loss, % |"
    yield "|---|---|---|---|"
    for found in results.get("trainings", []):
        share = found.get("underfitting_share")
        limited = "-" if share is None else f"{100 * share:.0f}"
        yield f"| {found['stage'][16:]} | {found['seed']} | {found['loss']:.2f} | {limited} |"
    yield ""
    yield "Seconds of each part, other work on the machine included:"
    yield ""
    for name, seed in results["seeds"].items():
        parts = ", ".join(f"{unit} {done['seconds']:.0f}" for unit, done in seed.items())
        total = sum(done["seconds"] for done in seed.values())
        yield f"- seed {name}: {total:.0f} in all: {parts}."
    yield ""
    yield "Settings beside those of recipes/voc12-animals.yaml:"
    yield ""
    yield from (f"    {setting}" for setting in results["settings"])


def line(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    paper = f"{row['paper']} ({row['source']})" if row["paper"] else f"no number ({row['source']})"
    if not row["seeds"]:
        return f"| {row['title']} | {paper} | | | | | {row['verdict']} |"
    pairs = zip(row["before"], row["after"], strict=True)
    sides = "; ".join(f"{before:.1f}, {after:.1f}" for before, after in pairs)
    seeds = ", ".join(map(str, row["seeds"]))
    interval = f"{row['low']:+.1f} to {row['high']:+.1f}"
    cells = (row["title"], paper, f"{row['gain']:+.1f}", interval, sides, seeds)
    return f"| {' | '.join(cells)} | **{row['verdict']}** |"


def details(row: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """A row of the second table; the last two columns are gains on a part of the photographs."""
    names: Sequence[str] = results["classes"]
    after, before = row["classes"]
    known = [(a - b, n) for a, b, n in zip(after, before, names, strict=True) if a is not None]
    changes = ", ".join(f"{name} {gain:+.1f}" for gain, name in (max(known), min(known)))
    ends = [[seed[side] for seed in row["exponents"]] for side in (1, 0)]
    exponents = ", ".join("; ".join("-" if e is None else f"{e:g}" for e in end) for end in ends)
    right, marked = ([side[k] for side in reversed(row["objects"])] for k in (0, 1))
    pixels = (f"{before:.0f}, {after:.0f}" for before, after in (right, marked))
    parts = (
        "{:+.1f} ({:+.1f} to {:+.1f}; {})".format(*row["parts"][name])
        if name in row["parts"]
        else ""
        for name in ("one class", "several")
    )
    return f"| {' | '.join((row['title'], exponents, *pixels, changes, *parts))} |"
