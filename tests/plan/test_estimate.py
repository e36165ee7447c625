"""From a sample's timings to a run's costs: arithmetic that can be done by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from pmm_ray.commands.plan.estimate import Cost, estimate
from pmm_ray.commands.plan.measure import ImportTiming, TableTiming, Timing, TrainingTiming
from pmm_ray.commands.plan.sample import Group, Sample
from pmm_ray.commands.plan.table import format_bytes, format_hours, notes, plan_table
from pmm_ray.config import RunConfig

from ..rehearsal import planned

TRAIN = Group("train", truth=False, labelled=True)
VAL = Group("val", truth=True, labelled=True)
VAL_BLIND = Group("val", truth=False, labelled=True)
SAMPLE = Sample("", {}, Counter({TRAIN: 1000, VAL: 90, VAL_BLIND: 10}))
ALL = frozenset({TRAIN, VAL, VAL_BLIND})


def table(cpu: float, groups: frozenset[Group], gpu: float = 0.0) -> TableTiming:
    return TableTiming(2.0, cpu, gpu, 100.0, groups)


TIMINGS: dict[str, Timing] = {
    "import_data": ImportTiming(5.0, 12_000),
    "train_classifier": TrainingTiming(10.0, 0.1, 0.05, 2, 4, 999),
    "make_cams": table(1.0, ALL),
    "sweep_masks-cam_argmax": table(0.2, frozenset({VAL})),
    "make_masks-cam_argmax": table(0.1, frozenset({VAL})),
    "evaluate-cam_argmax": table(0.01, frozenset({VAL})),
    "make_masks-crf_argmax": table(0.3, frozenset({VAL})),
    "evaluate-crf_argmax": table(0.01, frozenset({VAL})),
    "make_masks": table(0.5, ALL),
    "evaluate-ppmg": table(0.01, frozenset({VAL})),
    "train_segmenter-r0": TrainingTiming(10.0, 0.2, 0.0, 2, 2, 999),
    "predict_masks-r0-val": table(2.0, frozenset({VAL, VAL_BLIND})),
    "evaluate-segmenter-r0": table(0.01, frozenset({VAL})),
}


def config(**sections: dict[str, object]) -> RunConfig:
    return RunConfig.model_validate(sections)


def costs(
    recipe: RunConfig, timings: dict[str, Timing] = TIMINGS, gpus: float = 0
) -> dict[str, Cost]:
    return {cost.stage: cost for cost in estimate(recipe, timings, SAMPLE, gpus, 7.0)}


def test_every_planned_stage_with_truth_is_priced() -> None:
    recipe = config(cycles={"rounds": 2})
    found = costs(recipe)
    # no image of the training split has a mask: the run leaves those evaluations out
    without = {"evaluate-ppmg-train", "evaluate-cyclic-r1", "evaluate-cyclic-r2"}
    assert list(found) == ["start", *(s for s in planned(recipe) if s not in without)]
    assert all(cost.timed for cost in found.values())
    assert found["start"].seconds(2, 0) == 7.0


def test_a_table_stage_is_divided_over_cores() -> None:
    cams = costs(config())["make_cams"]
    assert (cams.images, cams.bytes) == (1100, 110_000)
    assert cams.cpu_hours == pytest.approx(1100 / 3600)
    assert cams.seconds(2, 0) == pytest.approx(2 + 550)
    assert cams.seconds(100, 0) == pytest.approx(2 + 11)
    few = costs(config(cams={"actors": 4}))["make_cams"]
    assert few.seconds(100, 0) == pytest.approx(2 + 275)


def test_stages_take_the_images_that_the_run_gives_them() -> None:
    found = costs(config(cycles={"rounds": 1}))
    assert found["make_masks-cam_argmax"].images == 90
    assert found["predict_masks-r0-val"].images == 100
    assert found["predict_masks-r1"].images == 1000
    assert found["predict_masks-r1-val"].images == 100
    assert found["evaluate-segmenter-r1"].images == 90
    assert found["compare_masks-r1"].images == 1000
    assert found["import_data"].images == 1100


def test_a_training_takes_its_steps_and_validations_on_any_cluster() -> None:
    section = {"epochs": 3, "batch_size": 16, "validation_images": 40}
    cost = costs(config(classifier=section))["train_classifier"]
    wanted = 10 + 3 * (1000 // 16) * 16 * 0.1 + 3 * 40 * 0.05
    assert cost.seconds(2, 0) == cost.seconds(64, 0) == pytest.approx(wanted)
    assert cost.cpu_hours == pytest.approx(wanted * 2 * 2 / 3600)
    section = {"iterations": 50, "batch_size": 8, "validate_every": 20, "validation_images": None}
    timings = TIMINGS | {"train_segmenter-r0": TrainingTiming(10.0, 0.2, 0.3, 2, 2, 999)}
    scored = costs(config(segmenter=section), timings)["train_segmenter-r0"]
    assert scored.seconds(2, 0) == pytest.approx(10 + 50 * 8 * 0.2 + 3 * 90 * 0.3)
    recipe = config(segmenter={"iterations": 50, "batch_size": 8})  # too short to be scored
    cost = costs(recipe, gpus=2)["train_segmenter-r1"]
    assert cost.gpu_hours == pytest.approx((10 + 50 * 8 * 0.2) * 2 / 3600)


def test_gpu_work_is_divided_over_gpus() -> None:
    timings = TIMINGS | {"make_cams": table(0.0, ALL, gpu=1.0)}
    cost = costs(config(), timings, gpus=4)["make_cams"]
    assert cost.cpu_hours == 0
    assert cost.gpu_hours == pytest.approx(1100 / 3600)
    assert cost.seconds(64, 4) == pytest.approx(2 + 275)
    # four actors on two GPUs
    few = costs(config(cams={"actors": 4, "gpus_per_actor": 0.5}), timings, gpus=4)["make_cams"]
    assert few.seconds(64, 4) == pytest.approx(2 + 550)


def test_fused_masks_make_their_own_maps() -> None:
    apart, found = costs(config()), costs(config(masks={"fused": True}))
    # CAMs that are not stored cannot be searched for the best exponent
    assert not {"make_cams", "sweep_masks-cam_argmax"} & set(found)
    walked = costs(config(masks={"fused": True}, affinity={"enabled": True}))
    assert {"make_cams", "sweep_masks-cam_argmax"} <= set(walked)
    assert found["make_masks"].cpu_seconds == pytest.approx(1100 * 1.5)
    assert found["make_masks-cam_argmax"].cpu_seconds == pytest.approx(90 * 1.1)
    assert found["make_masks"].bytes == apart["make_masks"].bytes
    timings = TIMINGS | {"make_cams": table(0.0, ALL, gpu=1.0)}
    on_gpu = costs(config(masks={"fused": True}), timings, gpus=1)["make_masks"]
    assert on_gpu.seconds(64, 1) == pytest.approx(4 + 1100)  # the GPU is what bounds it


def test_a_search_for_alpha_takes_no_more_than_its_sample() -> None:
    many = Sample("", {}, Counter({TRAIN: 1000, VAL: 5000}))
    recipe = config(masks={"alpha": "auto"})
    timings = TIMINGS | {"sweep_masks-alpha": table(1.5, frozenset({VAL}))}
    found = {cost.stage: cost for cost in estimate(recipe, timings, many, 0)}
    assert found["sweep_masks-alpha"].images == 100


def test_a_stage_of_an_unknown_kind_is_named_and_left_out_of_the_sums() -> None:
    timings = {k: v for k, v in TIMINGS.items() if not k.startswith("predict_masks")}
    rows = list(costs(config(), timings).values())
    said = " ".join(notes(rows, 64, 0))
    assert "not in the sums: predict_masks-r0-val, predict_masks-r1, predict_masks-r1-val" in said
    assert "trainings keep the workers" in said
    assert "timed, on this cluster" not in said
    assert "timed, on this cluster" in " ".join(notes(rows, 64, 1))
    shown = plan_table(rows, 2, 0, 64, 0.5)
    cells = [list(column.cells) for column in shown.columns]
    total = sum(cost.seconds(64, 0) for cost in rows if cost.timed)
    assert cells[0][-1] == "all stages"
    assert cells[-1][-1] == f"{total / 3600 * 64 * 0.5:.2f}"
    assert "not timed" in cells[1]


def test_numbers_for_people() -> None:
    sizes = [format_bytes(number) for number in (12, 3400, 5.61e9, 7e13)]
    assert sizes == ["12 B", "3.4 kB", "5.6 GB", "70.0 TB"]
    hours = [format_hours(number) for number in (0, 0.001234, 4.561, 1234.4)]
    assert hours == ["0", "0.00123", "4.56", "1234"]
