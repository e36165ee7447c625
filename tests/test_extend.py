"""The guide's own files are written out and run, as a user would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pmm_ray.config import CamsConfig, ClassifierConfig, ConfigError, SegmenterConfig
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.registry import build_classifier, load_classifier
from pmm_ray.nets.segmenter import build_segmenter, description_of, load_segmenter, predict_logits
from pmm_ray.report.run_data import load_run
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.core.index import read_all
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.rows.cams import decode_cam
from pmm_ray.stages.make_cams import cam_worker
from pmm_ray.stages.train_classifier import ClassifierTask

from .nets.segmenter_models import step
from .training import task_fields, train, training_job

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guides" / "extend.md"
SMALL = [
    *("data.images=8", "data.size=48", "data.classes=2", "evaluate.ladder=[]"),
    *("classifier.epochs=1", "classifier.batch_size=4", "classifier.crop_size=48"),
    *("classifier.resize_long=[48, 64]", "classifier.workers=1", "multicrop.workers=1"),
    *("cams.scales=[1.0]", "classifier.validation_images=0", "runtime.cpus=2"),
    *("affinity.workers=1", "segmenter.workers=1", "runtime.object_store_bytes=150000000"),
]


def files_of_the_guide() -> dict[str, str]:
    """File name -> its text."""
    text = GUIDE.read_text(encoding="utf-8")
    return dict(re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", text, flags=re.S))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stage_and_a_way_to_masks_from_outside(tmp_path: Path) -> None:
    files = files_of_the_guide()
    assert {"my_methods.py", "measure_masks.py", "my_run.py"} <= files.keys()
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    run_dir = tmp_path / "run"
    command = [sys.executable, "my_run.py", str(ROOT / "recipes" / "shapes.yaml"), str(run_dir)]
    python_path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": python_path}
    said = []
    for _ in range(2):
        done = subprocess.run(
            [*command, *SMALL],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append((float(done.stdout), done.stderr))
    assert said[0][0] == said[1][0]
    assert 0 <= said[0][0] <= 1
    assert "make_masks: " in said[0][1]
    assert "make_masks: " not in said[1][1]  # nothing is computed again
    run = load_run(str(run_dir), with_curves=False)
    made = {stage.stage: stage.folder.uri for stage in run.stages}
    shares = read_all(made["measure_masks"]).column("foreground").to_pylist()
    assert sorted(shares) == sorted(read_all(made["make_masks"]).column("foreground").to_pylist())


def test_a_backbone_from_outside(
    shapes: Manifest, group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = files_of_the_guide()["my_backbone.py"]
    (tmp_path / "my_backbone.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_backbone", None)
    values = {"backbone": "my_backbone:TINY", "weights": "none", "kind": "seam"}
    config = ClassifierConfig.model_validate({**values, "resize_long": [48, 64], "crop_size": 48})
    task = ClassifierTask(**task_fields(shapes, config))
    job = training_job(task, tmp_path / "run", images=12, steps=2)
    assert np.isfinite(train(job)["loss"])
    classifier, _ = load_classifier(job.model_uri)
    assert type(classifier.backbone).__name__ == "Tiny"
    worker = cam_worker(job.model_uri, CamsConfig(scales=(1.0,)), task.photographs, False)
    row = next(row for row in tables.read_table(shapes.uri).to_pylist() if row["labels"])
    [made] = worker([{"manifest": row}])
    assert not isinstance(made, ErrorRow)
    # stretched to 1, then stored smaller
    assert 0.8 < decode_cam(made).max() <= 1
    # it serves PSPNet, which is kept and built again
    section = SegmenterConfig(backbone="my_backbone:TINY", weights="none", channels=8)
    segmenter = build_segmenter(section, 4, 255)
    step(segmenter)
    uri = str(tmp_path / "segmenter.pt")
    save_model(uri, "segmenter", segmenter, description_of(segmenter).meta())
    loaded, _ = load_segmenter(uri)
    images = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        logits = predict_logits(segmenter.eval(), images)
        assert torch.equal(predict_logits(loaded, images), logits)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("my_backbone:tiny", "my_backbone:gone", "my_backbone has no gone"),
        ("my_backbone:tiny", "no_module:tiny", "cannot import no_module:tiny"),
        ('("conv2", "conv3")', '("conv2", "conv9")', "its row names conv9; its network has"),
        ('"conv4": 64}', '"conv4": 32}', "its row names conv4 of 32 channels"),
        ("return Tiny()", "return nn.ReLU()", "my_backbone:tiny gives no Backbone, but ReLU"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(
    before: str, after: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = files_of_the_guide()["my_backbone.py"]
    assert before in text
    (tmp_path / "my_backbone.py").write_text(text.replace(before, after), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_backbone", None)
    config = ClassifierConfig(backbone="my_backbone:TINY", weights="none")
    with pytest.raises(ConfigError, match=message):
        build_classifier(config, 3)
