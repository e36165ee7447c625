"""The parts of every section of a recipe.

Fields made with `execution(...)` say how to use the machine. They are not in a stage's hash, so a
change of them re-runs nothing. Fields made with `added(...)` are in it where they differ from their
default: what a new option leaves as it was is not made again. All other fields are in it, unless a
section's own `identity` says otherwise.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)


class ConfigError(ValueError):
    """The recipe or a `--set` cannot be used; the message names the key and the fix."""


Auto = Literal["auto"]
Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Scale = Annotated[float, Field(gt=0)]
GpuShare = Annotated[float, Field(gt=0, le=1)]


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"a range is [low, high] with 0 < low <= high, got {list(value)}")
    return value


IntRange = Annotated[tuple[int, int], AfterValidator(_ascending)]
FloatRange = Annotated[tuple[float, float], AfterValidator(_ascending)]


def check_windows(stride: int, size: int, name: str) -> None:
    """Refuse windows that leave pixels between them.

    Args:
        stride: from window to window, px.
        size: side of a window, px.
        name: of the key of `size`.

    Raises:
        ValueError: the stride is larger.
    """
    if stride > size:
        raise ValueError(
            f"stride {stride} is larger than {name} {size}: pixels between the windows would "
            "belong to none"
        )


def execution(default: Any, **constraints: Any) -> Any:
    """A field that cannot change the result: left out of the section's hash."""
    return Field(default, json_schema_extra={"identity": False}, **constraints)


def added(default: Any, **constraints: Any) -> Any:
    """A field that is in the section's hash only where it differs from its default."""
    return Field(default, json_schema_extra={"identity": "added"}, **constraints)


class Section(BaseModel):
    """A frozen part of the configuration; an unknown key, and a number without end, is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        # `Scale | Auto` holds an `Annotated[float, ...]`
        kinds = {getattr(one, "__origin__", one) for one in (kind, *get_args(kind))}
        if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
            raise ValueError("a number, not yes or no (YAML reads on and off as those, too)")
        return value

    def identity(self) -> dict[str, Any]:
        """The fields that decide the result, nested sections included, as plain values."""
        out: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            kind = extra.get("identity") if isinstance(extra, dict) else None
            value = getattr(self, name)
            if kind is False or (kind == "added" and value == field.default):
                continue
            out[name] = value.identity() if isinstance(value, Section) else value
        return out


def section_hash(*parts: Any) -> str:
    """Eight hex digits over sections and plain values: the name of a stage's output folder."""
    plain = [part.identity() if isinstance(part, Section) else part for part in parts]
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
