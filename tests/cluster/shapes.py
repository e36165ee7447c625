"""The nodes that the files in cluster/ declare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from pmm_ray.runtime.core.resources import Node

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@dataclass(frozen=True)
class Shape:
    """Nodes with and without GPUs, as Ray counts them."""

    file: str
    cpu: Node
    gpu: Node
    most_cpu: int
    most_gpu: int


def _launcher(file: str) -> Shape:
    types = yaml.safe_load((CLUSTER / file).read_text(encoding="utf-8"))["available_node_types"]

    def of(name: str) -> Node:
        kind = types[name]
        has = kind["resources"]
        return Node(has["CPU"], has.get("GPU", 0), labels=kind["labels"])

    return Shape(
        file, of("cpu"), of("gpu"), types["cpu"]["max_workers"], types["gpu"]["max_workers"]
    )


def _kuberay(file: str) -> Shape:
    manifest = yaml.safe_load((CLUSTER / "kuberay" / file).read_text(encoding="utf-8"))
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}

    def of(name: str) -> Node:
        container = groups[name]["template"]["spec"]["containers"][0]
        limits = container["resources"]["limits"]
        gpus = float(limits.get("nvidia.com/gpu", 0))
        return Node(float(limits["cpu"]), gpus, labels=groups[name]["labels"])

    most = {name: group["maxReplicas"] for name, group in groups.items()}
    return Shape(file, of("cpu"), of("gpu"), most["cpu"], most["gpu"])


SHAPES = [
    _launcher("aws.yaml"),
    _launcher("gcp.yaml"),
    _kuberay("raycluster.yaml"),
    _kuberay("rayjob.yaml"),
]
