"""What the user says of the files of other programs, checked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from pmm_ray.runtime.core.errors import CannotRunError

Normalize = Literal["max", "minmax", "none"]
ClassIds = Literal["auto", "contiguous", "coco90", "dataset"]
Values = Literal["auto", "logits", "probabilities"]


@dataclass(frozen=True)
class Said:
    """What the user says of CAMs or scores; what it leaves open, the files tell.

    Attributes:
        layout: name of a layout, see `cam_layouts` and `score_files`.
        key: name of the arrays in a dictionary or archive.
        first_class: number of the first class, 0 or 1.
        background_channel: whether class 0 is the background.
        values: what scores are.
        normalize: how each map of a CAM is brought to 0..1; None: maps that are not are refused.
        class_ids: whether classes are numbered without gaps, by COCO's 90 ids, or by the dataset's
            own, the values that the class list states.
        label_space: `voc12`, `coco14`, or a file of class names.
        trust_pickle: whether the user vouches for `.npy` files, which are pickles.
    """

    layout: str | None = None
    key: str | None = None
    first_class: int | None = None
    background_channel: bool = False
    values: Values = "auto"
    normalize: Normalize | None = None
    class_ids: ClassIds = "auto"
    label_space: str | None = None
    trust_pickle: bool = False

    def check(self, layouts: Collection[str], of: str) -> None:
        """Refuse words that are none, and such as contradict each other.

        Args:
            layouts: those that there are.
            of: what the files hold, for the message.

        Raises:
            CannotRunError: the option, the word and what is known.
        """
        for word, known, option in (
            (self.layout, layouts, "--layout"),
            (self.values, get_args(Values), "--values"),
            (self.normalize, get_args(Normalize), "--normalize"),
            (self.class_ids, get_args(ClassIds), "--class-ids"),
            (self.first_class, (0, 1), "--first-class"),
        ):
            if word is not None and word not in known:
                names = ", ".join(map(str, known))
                raise CannotRunError(f"{option} {word}: of {of} it is one of {names}")
        # ExCEL's first plane is the background, and its classes count from 0
        if self.background_channel and self.first_class == 0 and self.layout != "excel":
            raise CannotRunError(
                "--background-channel and --first-class 0 contradict each other: either class 0 is "
                "the background, or the first class"
            )
