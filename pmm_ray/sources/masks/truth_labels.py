"""Ground truth held against the image-level labels of its images: do its values mean the classes?

What is looked into is a sample of masks, see `truth.look_into`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pmm_ray.labels import BACKGROUND, IGNORE_8BIT, LabelSpace
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.masks.truth import look_into, meaning

_FIX = (
    "write the value of each class in ROOT/classes.txt, a line each (`0 background`, `2 cat`), or "
    "move the masks out of ROOT"
)


def numbered_space(names: Sequence[str], uris: Sequence[str]) -> LabelSpace | None:
    """The classes of labels that are numbers, where masks have these numbers as values.

    Args:
        names: the classes, which no list names, in their order.
        uris: the masks.

    Returns:
        None where names are no numbers, are 1, 2, 3, ... (that is their order), or no mask can be
        read.

    Raises:
        CannotRunError: masks hold other values.
        ValueError: numbers that make no label space.
    """
    if not names or not all(map(str.isdecimal, names)):
        return None
    numbers = [int(name) for name in names]
    if numbers == list(range(1, len(numbers) + 1)):
        return None
    looked = look_into(uris)
    for uri, values in looked.items():
        if 0 in numbers or not values <= {0, IGNORE_8BIT, *numbers}:
            raise CannotRunError(
                f"the labels are the numbers {numbers[:10]}, and {uri} holds "
                f"{sorted(values)[:10]}: which value means which label is not sure: {_FIX}"
            )
    return LabelSpace("folder", (BACKGROUND, *names), (0, *numbers)) if looked else None


def compare_with_labels(
    masks: Mapping[str, set[int]],
    labels: Mapping[str, Sequence[int]],
    files: Mapping[str, str],
    space: LabelSpace,
) -> list[str]:
    """Hold masks against the labels of their images.

    Args:
        masks: values of some masks by uri, contiguous ids; others mean nothing here.
        labels: of each image by the uri of its mask, at least one.
        files: the user's own file by the uri of a mask.
        space: the classes.

    Returns:
        What to say of labels that differ from the classes in a mask, and of empty masks.

    Raises:
        CannotRunError: half of several masks lack labels of their images and hold other classes, or
            a quarter hold others where all masks are alike: the values mean something else.
    """
    held = {uri: values & {*range(1, space.num_classes)} for uri, values in masks.items()}
    empty = [uri for uri, values in masks.items() if values <= {0, space.ignore}]
    compared = [uri for uri in held if held[uri]]
    differing = [uri for uri in compared if held[uri] != {*labels[uri]}]
    strange = [uri for uri in differing if not held[uri] <= {*labels[uri]}]

    def example(uri: str) -> str:
        values = ", ".join(meaning(space.dataset_ids[i], space) for i in sorted(held[uri])[:5])
        names = ", ".join(space.names[i] for i in labels[uri][:5])
        return f"{files[uri]} holds {values}, and its image is labelled {names}"

    # masks of foreground and background agree with the images of the first class
    alike = len({frozenset(held[uri]) for uri in compared}) == 1
    # labels that miss a class of their image are no contradiction: they are there, too
    wrong = [uri for uri in strange if alike or not {*labels[uri]} <= held[uri]]
    most = len(wrong) * (4 if alike else 2) >= max(len(compared), 1)
    # one mask may as well have the labels of another image
    if most and len(compared) > 1:
        raise CannotRunError(
            f"{example(wrong[0])}; {len(wrong)} of {len(compared)} masks that were looked into "
            f"hold classes that are no labels of their images, so their values mean something "
            f"else: {_FIX}. If labels are missing, add them"
        )
    notes = []
    if differing:
        notes.append(
            f"labels differ from masks: {len(differing)} of {len(compared)} looked into, such as: "
            + example((strange or differing)[0])
        )
    if empty:
        notes.append(
            f"masks of background alone, though their images have labels: {len(empty)} of "
            f"{len(masks)} looked into, such as {files[empty[0]]}"
        )
    return notes
