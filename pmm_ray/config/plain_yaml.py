"""YAML of plain values in which nothing is lost: no key stands in a mapping twice."""

from __future__ import annotations

from typing import Any

import yaml


def read_yaml(text: str) -> Any:
    """What a text holds.

    Raises:
        yaml.YAMLError: it is not YAML, a key is written twice, or a value looks like a date or a
            number and is none; the message names the line.
    """
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # as it is written: what `<<` takes over is not there yet
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise yaml.YAMLError(
                    f"line {line}: {key.value!r} is there already, in line {lines[name]}: keep one"
                )
            lines[name] = line
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(
                f"line {line}: {node.value}: {error}: put it in quotes if it is a text"
            ) from error
