"""`pmm plan` whole: the real pipeline on a sample, before anything is trained."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pmm_ray.commands.plan import plan_recipe
from pmm_ray.commands.plan.measure import sample_config
from pmm_ray.config import RunConfig, load_recipe
from pmm_ray.runtime.core import lease
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.resources import ClusterResources

from ..rehearsal import planned

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "shapes.yaml"
TWO_CPUS = ClusterResources(cpus=2, gpus=0, nodes=1, local=True)


def test_the_recipe_of_a_sample_is_short_and_otherwise_the_same() -> None:
    recipe = RunConfig.model_validate(
        {
            "classifier": {"weights": "/not/there.pt", "epochs": 15, "crop_size": 448},
            "segmenter": {"workers": 4, "batch_size": 16, "crop_size": 100},
            "masks": {"alpha": 5, "tasks": 100},
            "cams": {"scales": [1.0]},
            "affinity": {"batch_size": 64, "walk": {"actors": 1}},
        }
    )
    short = sample_config(recipe, TWO_CPUS, 10)
    assert short.classifier.weights == "none"
    assert (short.classifier.epochs, short.classifier.workers) == (2, 2)
    assert short.classifier.batch_size == 4  # a step of sixteen such crops would take too long
    assert (short.segmenter.iterations, short.segmenter.workers) == (4, 4)
    assert short.segmenter.batch_size == 16
    assert (short.masks.tasks, short.masks.alpha) == (2, 5)
    assert (short.cams.scales, short.cams.batch_size) == ((1.0,), 2)
    assert (short.affinity.epochs, short.affinity.batch_size) == (2, 4)
    assert (short.affinity.walk.actors, short.affinity.walk.batch_size) == (1, 2)
    assert short.base.cams.actors == 2
    gpus = sample_config(recipe, ClusterResources(cpus=8, gpus=4, nodes=1, local=True), 10)
    assert (gpus.classifier.batch_size, gpus.classifier.workers) == (16, 4)
    assert gpus.cams.actors == 4


def test_a_plan_works_in_a_folder_of_its_own_and_deletes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, other = tmp_path / ".pmm-plan-00000001", tmp_path / ".pmm-plan-00000002"
    mine = [tmp_path / "plan/mine.txt", tmp_path / ".pmm-plan-mine/mine.txt"]
    for path in (*mine, killed / "run/part-0.parquet"):
        path.parent.mkdir(parents=True)
        path.write_text("")
    used: list[Path] = []

    def measure(config: RunConfig, run_dir: str, *_: object) -> None:
        used.append(Path(run_dir).parent)
        Path(run_dir).mkdir()
        assert not killed.exists()
        assert other.exists()
        raise CannotRunError("no such data")

    monkeypatch.setattr("pmm_ray.commands.plan.measure.measure", measure)
    with lease.hold(str(other), "another plan"):
        for _ in range(2):
            assert plan_recipe(RECIPE, run_dir=str(tmp_path)) == 1
    assert len({*used, other}) == 3
    assert not any(path.exists() for path in used)
    assert all(path.exists() for path in mine)


def test_the_numbers_are_kept_though_nobody_reads_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody_reads(*_: object) -> None:
        raise BrokenPipeError

    sample = SimpleNamespace(uri="", group_of={"a": "a", "b": "b"})
    cluster = ClusterResources(cpus=8, gpus=1, nodes=1, local=True)
    measured = SimpleNamespace(sample=sample, cluster=cluster, timings=[], connect_seconds=1.0)
    plan = "pmm_ray.commands.plan"
    for name, made in (
        ("measure.measure", measured),
        ("estimate.estimate", []),
        ("open_manifest", SimpleNamespace(uri="", label_space=None)),
        ("sample.usual_size", (8, 8)),
    ):
        monkeypatch.setattr(f"{plan}.{name}", lambda *_, made=made: made)
    monkeypatch.setattr("pmm_ray.report.console.print_whole", nobody_reads)
    with pytest.raises(BrokenPipeError):
        plan_recipe.__wrapped__(Progress(stream=io.StringIO()), RECIPE, run_dir=str(tmp_path))  # type: ignore[attr-defined]
    assert json.loads((tmp_path / "plan.json").read_text())["sample"] == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_plans_a_run_and_leaves_only_its_numbers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = ["data.images=24", "data.size=64", "runtime.cpus=2", "masks.alpha=auto"]
    run_dir = tmp_path / "run"
    code = plan_recipe(
        RECIPE, run_dir=str(run_dir), settings=settings, sample=8, cores=64, price=0.04
    )
    printed = capfd.readouterr()
    assert code == 0, printed.err
    assert [path.name for path in run_dir.iterdir()] == ["plan.json"]
    plan = json.loads((run_dir / "plan.json").read_text())
    stages = [stage["stage"] for stage in plan["stages"]]
    assert stages == ["start", *planned(load_recipe(RECIPE, settings))]
    assert all(stage["timed"] and stage["seconds"] > 0 for stage in plan["stages"])
    assert all(s["seconds_on_cores"] <= s["seconds"] for s in plan["stages"])
    # of GPUs alone: every stage was timed
    assert printed.out.count("not timed") == printed.out.count("one GPU, not timed") == 1
    assert "cost, 64 cores" in printed.out
    assert "hours of one GPU" in printed.out
    networks = ("train_", "make_base_cams", "make_cams", "predict_masks")
    assert list(plan["gpu_hours_computed"]) == [s for s in stages if s.startswith(networks)]
    images = {s["stage"]: s["images"] for s in plan["stages"]}
    assert (images["make_cams"], images["make_masks-cam_argmax"]) == (24, 6)
