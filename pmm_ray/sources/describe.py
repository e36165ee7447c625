"""The page of what is read, refused and left out, from the tables of the code itself.

python -m pmm_ray.sources.describe > docs/reference/inputs.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pmm_ray.labels import is_background
from pmm_ray.runtime.core.errors import ERROR_KINDS
from pmm_ray.runtime.rows.images import EXTRAS, FORMATS, UNREAD
from pmm_ray.sources.cams import cam_layouts, score_files
from pmm_ray.sources.datasets import coco, coco14, folder, foreign, parquet, sbd, voc12
from pmm_ray.sources.importing import photographs
from pmm_ray.sources.labels import label_files, label_lines
from pmm_ray.sources.reading import names

_SPELLINGS = ("background", "_background_", "__background__", "BG", "bkg")


def page() -> str:
    """The page as Markdown."""
    assert all(map(is_background, _SPELLINGS))
    return "\n".join(_sections()) + "\n"


def _sections() -> Iterable[str]:
    yield from (
        "# What is read, what is refused, what is left out",
        "",
        "*Written by `python -m pmm_ray.sources.describe`; a test holds it to the code.*",
        "",
        "Each file becomes a result or an error row, or it is left out with a reason. The last "
        "three lines count them. After an import the classes with their "
        "images, the splits that nothing uses and the names that did not match are printed, and "
        'stand in the report under "Data".',
        "",
        "## Photographs",
        "",
        *_table(("format", "endings, in any case", "needs"), _formats()),
        "",
        f"Not read, and an error row that says how to convert: {_code(UNREAD)}. The content "
        "counts, not the ending: a HEIC file called `.jpg` is HEIC. Of several frames the first "
        "is taken. A file that is cut short or damaged is an error row: a PNG by its checksums and "
        "rows, a JPEG as far as it can be told, as it has no checksum. Transparent pixels become "
        "white; a picture that is transparent everywhere is an error row. The EXIF orientation is "
        "that of EXIF data before the pixels: not of a PNG's later chunks or texts, nor of XMP.",
        "",
        f"They are looked for in {_code(photographs.IMAGE_FOLDERS)}, else in the folder itself, "
        "with sub-folders and through links. Left out, by name: "
        + ", ".join(photographs.LEFT_OUT.values())
        + f". Error rows are of the kinds {_code(ERROR_KINDS)}.",
        "",
        "## Names",
        "",
        _paragraph(names.__doc__),
        "",
        "## Text",
        "",
        "UTF-8, and UTF-16 or UTF-32 with a byte order mark; anything else is refused. Tables are "
        "separated by `,`, `;` or tabs (Excel's line `sep=;` is understood); lines of which every "
        "cell is empty are left out. The columns of labels may be called, in any case and with "
        "`_`, `-`, a space or nothing between words: "
        + "; ".join(f"`{key}`: {_code(names)}" for key, names in label_lines.COLUMNS.items())
        + ". `data.label_column` names another. Without a column of labels each other column is a "
        "class, with 1 or 0 in each line, or what means these without doubt: true or false (also "
        "in German, French, Italian, Spanish, Portuguese, Dutch), yes or no, y or n, x, a check "
        "mark, `1,0`, an empty cell; 1 and -1 where no cell is 0 or empty. A label of several "
        "numbers (`16 0`) or with a score (`dog 0.93`) is an error, unless a class list has it.",
        "",
        "## Class lists",
        "",
        *_table(("file", "content"), label_files.FILES.items()),
        "",
        f"In a folder: {_code(photographs.CLASS_FILES)}. The background may come first, in any "
        f"case: {_code(_SPELLINGS)}; anywhere else it is refused, as mask values would be one off.",
        "",
        "## Sources",
        "",
        *_doc("voc12", voc12.__doc__),
        *_doc("sbd (beside voc12)", sbd.__doc__),
        *_doc("coco14", coco14.__doc__),
        *_doc("folder", folder.__doc__),
        *_doc("coco", coco.__doc__),
        f"Looked for, in this order: {_code(coco.FILES)} (`{{}}` is the split), then "
        f"{_code(coco.SINGLE_FILES)}. Left out, and counted: {coco.UNASKED}.",
        "",
        *_doc("parquet", parquet.__doc__),
        "## Refused, with what to choose instead",
        "",
        *_table(("export", "instead"), foreign.FOREIGN.items()),
        "",
        "## CAMs (`pmm masks`)",
        "",
        *_table(("`--layout`", "file", "written by"), _layouts(cam_layouts.LAYOUTS)),
        "",
        "`part-*.parquet`, our own cams table, says itself what it holds. The layout is told from "
        "the names in a file. Refused, with the flag to use: planes that add up to one (scores "
        "with a background), a class 0 in every file, which may be the background, and scores out "
        "of 0..1. Scores that are nowhere above 0 are an error row, and refused where all files "
        "have such.",
        "",
        "## Scores (`pmm refine`)",
        "",
        *_table(("`--layout`", "file", "written by"), _layouts(score_files.LAYOUTS)),
        "",
        "Numbers are mask values or values of the class list, 0 the background; ExCEL's are one "
        "less, and its first plane is the background; planes without numbers stand in the order of "
        "the classes, the background first. Refused, with the flag to use: scores without a "
        "background, numbered planes that do not add up to one, and values that may be logits or "
        "probabilities.",
    )


def _formats() -> Iterable[tuple[str, str, str]]:
    for name, endings in FORMATS.items():
        needs = "`pip install 'pmm-ray[photos]'`" if name in EXTRAS else ""
        yield name, _code(endings), needs


def _layouts(layouts: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    return ((f"`{name}`", layout.file, layout.written_by) for name, layout in layouts.items())


def _doc(source: str, text: str | None) -> Iterable[str]:
    """A source by its module's own words."""
    assert text is not None
    yield from (f"### {source}", "", text.strip(), "")


def _paragraph(text: str | None) -> str:
    assert text is not None
    return text.split("\n\n", 1)[1].strip()


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


if __name__ == "__main__":
    print(page(), end="")
