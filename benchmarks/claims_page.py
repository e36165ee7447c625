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
    yield f"{about['date']}, commit {about['commit']}, {about['machine']}:"
    yield ""
    yield f"    {about['command']}"
    yield ""
    yield "| claim | paper | ours | interval | before, after | seeds | verdict |"
    yield "|---|---|---|---|---|---|---|"
    yield from (line(row) for row in results["rows"])
    yield ""
    yield "Classes that change most, exponents, how much of the objects is found, and the gain on"
    yield "photographs of one class and of several:"
    yield ""
    yield from (f"- {note}" for row in results["rows"] if (note := details(row, results)))
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
    """A row's classes that change most, its exponents, pixels of objects, and parts."""
    if not row["seeds"]:
        return ""
    names: Sequence[str] = results["classes"]
    after, before = row["classes"]
    known = [(a - b, n) for a, b, n in zip(after, before, names, strict=True) if a is not None]
    most, least = max(known), min(known)
    parts = [f"{most[1]} {most[0]:+.1f}, {least[1]} {least[0]:+.1f}"]
    ends = [[seed[side] for seed in row["exponents"]] for side in (1, 0)]
    if any(e is not None for end in ends for e in end):
        said = (", ".join("none" if e is None else f"{e:g}" for e in end) for end in ends)
        parts.append("exponent before {}, after {}".format(*said))
    (right, marked), (right_before, marked_before) = row["objects"]
    parts.append(
        f"objects' pixels of their class {right_before:.0f} %, then {right:.0f} %, "
        f"of any {marked_before:.0f} %, then {marked:.0f} %"
    )
    for name, (gain, low, high, count) in row["parts"].items():
        parts.append(f"{count} photographs with {name} {gain:+.1f} ({low:+.1f} to {high:+.1f})")
    return f"{row['title']}: {'; '.join(parts)}"
