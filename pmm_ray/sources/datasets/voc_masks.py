"""The PNG masks of a VOC tree, also where they were unpacked or named in another way."""

from __future__ import annotations

from collections.abc import Collection

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.rows.images import IMAGE_SUFFIXES
from pmm_ray.sources.importing.photographs import LEFT_OUT, places_in
from pmm_ray.sources.importing.results import is_result, results_in
from pmm_ray.sources.masks.truth import MASK_SUFFIX
from pmm_ray.sources.reading.names import has_ending, is_hidden, path_below, stem_path

# the first wins: SegmentationClassAug may hold SBD's mask, without a border, of an image that has
# an official one, as more than half of val do where mmsegmentation's converter wrote the folder
_FOLDERS = ("SegmentationClass", "SegmentationClassAug")


def find_voc_masks(
    voc: str, image_ids: Collection[str], out: str
) -> tuple[dict[str, str], list[str]]:
    """Find the masks of photographs in `SegmentationClass` and `SegmentationClassAug`.

    A mask is called as its photograph, perhaps with `_gt` or the like behind, and may be in a
    folder below: `SegmentationClassAug/SegmentationClassAug`.

    Args:
        voc: the folder `VOC2012`.
        image_ids: of the photographs.
        out: where results go: what is there is no mask of VOC's, nor are older results.

    Returns:
        The uri of each image's mask by its id, and what is not used, and why.
    """
    names = storage.list_names(voc)
    found: dict[str, str] = {}
    notes: list[str] = []
    read: list[str] = []
    for folder in reversed(_FOLDERS):
        for place in places_in(voc, [folder], names):
            read.append(place.rsplit("/", 1)[-1])
            of, said = _in_folder(place, image_ids, out)
            found |= of
            notes += said
    notes += [
        f"{voc}/{name} is not read: masks are looked for in {' and '.join(_FOLDERS)}"
        for name in names
        if name.casefold().startswith("segmentationclass") and name not in read
    ]
    return found, notes


def _in_folder(
    place: str, image_ids: Collection[str], out: str
) -> tuple[dict[str, str], list[str]]:
    """The mask of each image by its id, and what is not used."""
    ways: dict[str, dict[int, list[str]]] = {}
    ours: list[str] = []
    others: list[str] = []
    lone: list[str] = []
    uris = [entry.uri for entry in storage.list_entries(place, recursive=True) if not entry.fault]
    results = results_in(uris, place, out)
    for uri in uris:
        name = path_below(uri, place)
        if is_hidden(name) or not has_ending(name, IMAGE_SUFFIXES):
            continue
        if is_result(uri, place, results):
            ours.append(uri)
            continue
        if not has_ending(name, ".png"):
            others.append(uri)
            continue
        stem = stem_path(name).rsplit("/", 1)[-1]
        image_id = stem if stem in image_ids else MASK_SUFFIX.sub("", stem)
        if image_id not in image_ids:
            lone.append(uri)
        # the file that VOC has counts before one in a folder below or with more in its name
        rank = 2 * ("/" in name) + (stem != image_id)
        ways.setdefault(image_id, {}).setdefault(rank, []).append(uri)
    best = {image_id: of[min(of)] for image_id, of in ways.items()}
    unsure = [uris for uris in best.values() if len(uris) > 1]
    notes = [
        f"masks that are not used, as {why}: {len(uris)}, such as {uris[0]}"
        for why, uris in (
            (f"they are {LEFT_OUT['results']}", ours),
            ("they are no PNG files (JPEG changes their values)", others),
            ("no photograph has their name", lone),
            ("another one fits the photograph as well", [u for uris in unsure for u in uris]),
        )
        if uris
    ]
    return {image_id: uris[0] for image_id, uris in best.items() if len(uris) == 1}, notes
