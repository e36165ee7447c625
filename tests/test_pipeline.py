"""The pipeline's plan, its selection of stages, and what makes a stage run again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pmm_ray.config import RunConfig, load_recipe
from pmm_ray.nets.weight_files import weights_identity
from pmm_ray.pipeline.run import Step, open_run
from pmm_ray.pipeline.steps import steps
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import BudgetExceededError, CannotRunError, ErrorRow
from pmm_ray.runtime.core.index import ids_hash
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.selection import Selection
from pmm_ray.runtime.core.session import Session
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary

from .rehearsal import planned

PLAN = planned(RunConfig())
Do = Callable[..., StageFolder]
MEASURES = frozenset(step.name for step in steps(RunConfig()) if step.measures)


FOUR = tuple("abcd")
"""Ids of the images that a stage takes here."""


@pytest.fixture
def ran() -> list[str]:
    return []


@pytest.fixture
def do(ran: list[str]) -> Do:
    """Does a stage that makes three rows of four and one error row."""

    def run(context: RunContext, folder: StageFolder) -> Summary:
        ran.append(folder.stage)
        details = {"took": ids_hash(FOUR)}
        return Summary(stage=folder.stage, hash=folder.hash, images=3, errors=1, details=details)

    def do(
        attempt: Session, name: str, identity: str = "1", images: Iterable[str] | None = None
    ) -> Any:
        return attempt.do(Stage(name, (identity,), run, images))

    return do


def session(run_dir: Path, **selection: object) -> Session:
    chosen = Selection(PLAN, measures=MEASURES, **selection)  # type: ignore[arg-type]
    return Session(str(run_dir), RunConfig(), chosen, Progress(stream=io.StringIO()))


def test_the_plan_follows_the_paper() -> None:
    assert PLAN == (
        "import_data",
        "train_classifier",
        "make_cams",
        "sweep_masks-cam_argmax",
        "make_masks-cam_argmax",
        "evaluate-cam_argmax",
        "make_masks-crf_argmax",
        "evaluate-crf_argmax",
        "make_masks",
        "evaluate-ppmg",
        "evaluate-ppmg-train",
        "train_segmenter-r0",
        "predict_masks-r0-val",
        "evaluate-segmenter-r0",
        "predict_masks-r1",
        "compare_masks-r1",
        "evaluate-cyclic-r1",
        "train_segmenter-r1",
        "predict_masks-r1-val",
        "evaluate-segmenter-r1",
    )
    short = RunConfig.model_validate(
        {"cycles": {"rounds": 0}, "evaluate": {"ladder": [], "train_masks": False}}
    )
    assert planned(short)[-3:] == PLAN[11:14]
    assert len(planned(short)) == 8


def test_multi_crop_training_needs_base_masks_of_a_first_classifier() -> None:
    config = RunConfig.model_validate({"multicrop": {"enabled": True}})
    plan = planned(config)
    assert plan[1:6] == (
        "train_classifier",
        "make_base_cams",
        "make_base_masks",
        "train_multicrop",
        "make_cams",
    )
    assert plan[6:] == PLAN[3:]
    last = sorted(Selection(plan, last="make_base_masks").positions)
    assert [plan[i] for i in last] == list(plan[:4])
    # the base masks are no masks of the ladder
    masks = [plan[i] for i in Selection(plan, only="make_masks").positions]
    assert not {"make_base_masks", "make_base_cams"} & set(masks)


@pytest.mark.parametrize(
    "recipe",
    [
        *("voc12", "voc12-released", "voc12-mini", "shapes"),
        *("coco14", "coco14-released", "coco14-gate-labels", "coco14-mini"),
    ],
)
def test_every_recipe_can_be_read(recipe: str) -> None:
    config = load_recipe(Path(__file__).parent.parent / "recipes" / f"{recipe}.yaml")
    assert config.name == recipe
    released = recipe.endswith("released")
    if recipe.startswith(("voc12", "coco14")) and not recipe.endswith("-mini"):
        assert config.multicrop.enabled is (recipe != "coco14-released")
        # the published rates are those of 5e-4: with 0.9 SEAM collapses
        for section in (config.classifier, config.multicrop, config.affinity):
            assert section.momentum == 5e-4
        assert config.segmenter.momentum == 0.9
        assert config.cams.crops.geometry == ("released" if released else "paper")
        assert ("train_multicrop" in planned(config)) is config.multicrop.enabled


def test_the_variant_with_gated_labels_differs_in_nothing_else() -> None:
    recipes = Path(__file__).parent.parent / "recipes"
    plain = load_recipe(recipes / "coco14.yaml")
    gated = load_recipe(recipes / "coco14-gate-labels.yaml")
    assert gated.classifier.pcm.gate_labels
    assert gated.multicrop.pcm.gate_labels
    gates = [f"{section}.pcm.gate_labels=true" for section in ("classifier", "multicrop")]
    same = load_recipe(recipes / "coco14.yaml", ["name=coco14-gate-labels", *gates])
    assert gated == same != plain


def chosen(**selection: object) -> list[str]:
    positions = Selection(PLAN, measures=MEASURES, **selection).positions  # type: ignore[arg-type]
    return [PLAN[i] for i in sorted(positions)]


def test_selections() -> None:
    assert chosen() == list(PLAN)
    assert chosen(last="make_cams") == list(PLAN[:3])
    assert chosen(first="train_segmenter-r1") == list(PLAN[17:])
    # evaluations go with their masks; a name without its round means all of them
    assert chosen(only="make_masks") == list(PLAN[4:11])
    assert chosen(only="train_segmenter") == ["train_segmenter-r0", "train_segmenter-r1"]
    assert chosen(only="evaluate") == [name for name in PLAN if name.startswith("evaluate")]
    with pytest.raises(CannotRunError, match="no stage is called 'brew'; this recipe has import"):
        Selection(PLAN, first="brew")


def test_a_finished_stage_does_not_run_again(tmp_path: Path, ran: list[str], do: Do) -> None:
    for _ in range(2):
        with session(tmp_path) as attempt:
            do(attempt, "make_cams", images=FOUR)
    assert ran == ["make_cams"]
    with session(tmp_path) as attempt:
        do(attempt, "make_cams", "2", images=FOUR)  # another configuration
        do(attempt, "make_cams", images="abcde")  # more to map
        do(attempt, "make_cams", images="abce")  # as many, one other
    assert ran == ["make_cams"] * 4


def test_a_stage_that_failed_has_no_summary_and_runs_again(
    tmp_path: Path, ran: list[str], do: Do
) -> None:
    def fail(context: RunContext, folder: StageFolder) -> Summary:
        raise CannotRunError("no")

    with session(tmp_path) as attempt, pytest.raises(CannotRunError, match="no"):
        attempt.do(Stage("make_cams", ("1",), fail))
    with session(tmp_path) as attempt:
        do(attempt, "make_cams")
    assert ran == ["make_cams"]


def test_fresh_and_retry_errors(tmp_path: Path, ran: list[str], do: Do) -> None:
    with session(tmp_path) as attempt:
        folder = do(attempt, "make_cams", images=FOUR)
    part, error = Path(folder.path("part-a.parquet")), Path(folder.errors_uri) / "part-a.parquet"
    error.parent.mkdir()
    for file in (part, error):
        file.touch()
    with session(tmp_path, retry_errors=True) as attempt:
        do(attempt, "make_cams", images=FOUR)
    assert len(ran) == 2
    assert part.exists()  # rows stay, only what failed is done again
    assert not error.exists()
    with session(tmp_path, fresh=True) as attempt:
        do(attempt, "make_cams", images=FOUR)
    assert len(ran) == 3
    assert not part.exists()


@pytest.mark.parametrize("how", ["retry_errors", "fresh"])
def test_a_stage_that_is_done_anew_keeps_what_another_one_put_there(
    tmp_path: Path, how: str
) -> None:
    """The masks that `rasterize_masks` makes of COCO's annotations are beside the manifest."""

    def run(context: RunContext, folder: StageFolder) -> Summary:
        assert not Path(folder.path("manifest.parquet")).exists()
        Path(folder.path("manifest.parquet")).touch()
        return Summary(stage=folder.stage, hash=folder.hash, images=3, errors=1)

    stage = Stage("import_data", ("1",), run, keeps="masks")
    with session(tmp_path) as attempt:
        folder = attempt.do(stage)
    tables.write_errors(folder.errors_uri, "a", [ErrorRow("a", folder.stage, "decode", "torn")])
    mask = Path(folder.path("masks", "b.png"))
    mask.parent.mkdir()
    mask.touch()
    with session(tmp_path, **{how: True}) as attempt:
        attempt.do(stage)
    assert mask.exists()
    assert not Path(folder.errors_uri).exists()


def test_what_ends_a_run_is_not_hidden_by_a_store_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flush() -> None:
        raise CannotRunError("the store fails")

    attempt = session(tmp_path)
    monkeypatch.setattr(attempt.events, "flush", flush)
    with pytest.raises(ValueError, match="the reason"), attempt:
        raise ValueError("the reason")
    with pytest.raises(CannotRunError, match="the store fails"), attempt:
        pass


@pytest.mark.parametrize("how", ["retry_errors", "fresh"])
def test_a_stage_is_not_done_while_what_it_made_is_being_deleted(
    tmp_path: Path, ran: list[str], do: Do, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Killed in the middle, and run again without the option."""

    def killed(uri: str) -> None:
        raise KeyboardInterrupt

    with session(tmp_path) as attempt:
        do(attempt, "make_cams", images=FOUR)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete_folder", killed)
        with pytest.raises(KeyboardInterrupt), session(tmp_path, **{how: True}) as attempt:
            do(attempt, "make_cams", images=FOUR)
    with session(tmp_path) as attempt:
        do(attempt, "make_cams", images=FOUR)
    assert len(ran) == 2


def test_a_stage_that_went_over_its_budget_takes_its_failed_images_again(
    tmp_path: Path, ran: list[str], do: Do
) -> None:
    """It has no summary, and the rows of what failed would end it again."""

    def fail(context: RunContext, folder: StageFolder) -> Summary:
        rows = [ErrorRow("a", folder.stage, "decode", "torn")]
        tables.write_errors(folder.errors_uri, "a", rows)
        Path(folder.path("part-b.parquet")).touch()
        raise BudgetExceededError(folder.stage, 1, 0, rows)

    with session(tmp_path) as attempt, pytest.raises(BudgetExceededError, match="--retry-errors"):
        attempt.do(Stage("make_cams", ("1",), fail, FOUR))
    [folder] = tmp_path.glob("make_cams-*")
    with session(tmp_path, retry_errors=True) as attempt:
        do(attempt, "make_cams", images=FOUR)
    assert ran == ["make_cams"]
    assert not (folder / "errors").exists()
    assert (folder / "part-b.parquet").exists()  # what was made stays


def test_what_follows_depends_on_the_images_a_training_did_without(tmp_path: Path, do: Do) -> None:
    with session(tmp_path) as attempt:
        folder = do(attempt, "train_segmenter-r0")
    assert folder.result == folder.hash
    seen = set()
    for image_ids in (["a"], ["b"], ["a", "b"]):
        rows = [ErrorRow(i, folder.stage, "decode", "torn") for i in image_ids]
        tables.write_errors(folder.errors_uri, "part-0.parquet", rows)
        seen.add(folder.result)
    assert len(seen) == 3
    assert folder.hash not in seen
    with session(tmp_path, retry_errors=True) as attempt:
        folder = do(attempt, "train_segmenter-r0")
    assert folder.result == folder.hash


def test_a_command_that_came_to_its_end_is_finished(tmp_path: Path) -> None:
    def finished() -> object:
        return json.loads((tmp_path / "run.json").read_text())["finished"]

    step = Step("import_data", lambda run: Stage("import_data", ("1",), make))
    shown = Progress(stream=io.StringIO())

    def make(context: RunContext, folder: StageFolder) -> Summary:
        assert finished() is None
        return Summary(stage=folder.stage, hash=folder.hash)

    with open_run(str(tmp_path), RunConfig(), [step], shown) as run:
        run.follow()
    assert finished() is not None


def test_stages_outside_the_selection_do_not_run(tmp_path: Path, ran: list[str], do: Do) -> None:
    with (
        session(tmp_path, first="make_masks", last="make_masks") as attempt,
        pytest.raises(CannotRunError, match=r"make_cams is not done in .*: run it first"),
    ):
        do(attempt, "make_cams")
    with session(tmp_path, last="make_cams") as attempt:
        do(attempt, "make_cams")
        assert attempt.selection.ended("make_masks")
    assert ran == ["make_cams"]


def test_a_whole_run_that_ends_earlier_is_recorded_though_it_computed_nothing(
    tmp_path: Path, do: Do
) -> None:
    def stages() -> list[str]:
        record = json.loads((tmp_path / "run.json").read_text())
        assert record["finished"]
        return [stage["stage"] for stage in record["stages"]]

    for ended, selection, expected in (
        (3, {}, PLAN[:3]),
        (3, {}, PLAN[:3]),
        (2, {"last": "make_cams"}, PLAN[:3]),  # a part of the plan says nothing of the whole
        (2, {}, PLAN[:2]),
    ):
        with session(tmp_path, **selection) as attempt:
            for name in PLAN[:ended]:
                do(attempt, name, images=FOUR)
            attempt.write_record(finished=True)
        assert stages() == list(expected)


def test_a_part_of_a_run_done_again_leaves_the_later_stages_in_the_record(
    tmp_path: Path, do: Do
) -> None:
    def stages() -> list[tuple[str, str]]:
        record = json.loads((tmp_path / "run.json").read_text())
        return [(stage["stage"], stage["hash"]) for stage in record["stages"]]

    with session(tmp_path) as attempt:
        for name in PLAN[:5]:
            do(attempt, name, images=FOUR)
        attempt.write_record(finished=True)
    before = stages()
    assert len(before) == 5
    for identity, kept in (("1", 5), ("2", 3)):  # the same again; another configuration
        with session(tmp_path, first=PLAN[2], last=PLAN[2], fresh=True) as attempt:
            for name in PLAN[:2]:
                do(attempt, name, images=FOUR)
            do(attempt, PLAN[2], identity, images=FOUR)
            attempt.write_record(finished=True)
        assert len(stages()) == kept
        assert stages()[:2] == before[:2]
    assert stages()[2] != before[2]


def test_weights_are_known_by_their_content(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(b"the same")
    assert weights_identity(str(tmp_path / "a"), "efficientnet_lite0") == weights_identity(
        str(tmp_path / "b"), "efficientnet_lite0"
    )
    (tmp_path / "b").write_bytes(b"another")
    assert weights_identity(str(tmp_path / "a"), "efficientnet_lite0") != weights_identity(
        str(tmp_path / "b"), "efficientnet_lite0"
    )
    assert weights_identity("imagenet", "efficientnet_lite0") == "imagenet"
    with pytest.raises(CannotRunError, match="cannot read the weights"):
        weights_identity(str(tmp_path / "absent"), "efficientnet_lite0")
