"""Recipes and run folders in a bucket, which is a folder here."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pmm_ray.commands.predict import find_segmenter
from pmm_ray.config import ConfigError
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.recipes import read_recipe

from ..export.runs import make_run


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `s3://bucket` holds."""
    local = pafs.LocalFileSystem()
    there = pafs.SubTreeFileSystem(str(tmp_path), local)
    monkeypatch.setattr(storage, "_filesystem", lambda root: there if root else local)
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket"


def test_a_recipe_of_a_bucket(bucket: Path) -> None:
    (bucket / "r.yaml").write_text("masks: {alpha: 3}")
    config = read_recipe("s3://bucket/r.yaml", ["seed=7"])
    assert (config.masks.alpha, config.seed) == (3, 7)
    (bucket / "r.yaml").write_text("masks: [")
    with pytest.raises(ConfigError, match=r"s3://bucket/r\.yaml is not valid YAML"):
        read_recipe("s3://bucket/r.yaml")
    with pytest.raises(ConfigError, match=r"cannot read the recipe s3://bucket/absent\.yaml"):
        read_recipe("s3://bucket/absent.yaml")


def test_a_run_in_a_bucket_is_predicted_from_on_another_machine(bucket: Path) -> None:
    """What its recipe says of its own cluster does not count; what the user sets does."""
    cluster = {"cpu_labels": {"pool": "cpu"}, "autoscaled_nodes": [{"cpus": 8, "gpus": 4}]}
    (bucket / "run").mkdir()
    make_run(bucket / "run", "train_segmenter-r0", runtime=cluster)
    model, config = find_segmenter("s3://bucket/run", ["runtime.cpus=3"])
    assert model == "s3://bucket/run/train_segmenter-r0-00000000/model.pt"
    assert config.predict.crop_size == 64
    assert (config.runtime.cpu_labels, config.runtime.autoscaled_nodes) == ({}, ())
    assert config.runtime.cpus == 3
