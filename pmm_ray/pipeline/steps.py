"""The steps of a run, in order: section 3.5 of the paper.

    photographs + image-level labels -> classifier -> CAMs -> pseudo-masks -> segmenter
                                                               ^ better masks <- relabel <-|

The classifier may be two: base masks from the first one's CAMs relabel the windows that the second
one is trained on (multi-crop training). Each arrow is a stage on Ray, each thing between two arrows
a table. The plan, the selection, the run and the estimate all use this list; the paper's tables
use its parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

from pmm_ray.config import RunConfig
from pmm_ray.method.mask_methods import MASK_METHODS
from pmm_ray.pipeline.data import data_steps
from pmm_ray.pipeline.rounds import evaluation, rounds
from pmm_ray.pipeline.run import Run, Step
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.stage import Stage, StageFolder
from pmm_ray.runtime.rows.cams import Cams


def steps(config: RunConfig) -> list[Step]:
    """Every step of a recipe. Evaluations make nothing where there is no truth."""
    return [
        *data_steps(config),
        *classifier_steps(config),
        make_cams(streamed=config.streams_cams),
        *(walk_steps() if config.affinity.enabled else []),
        *([choose_alpha(config)] if config.masks.alpha == "auto" else []),
        *(step for method in ladder(config) for step in ladder_steps(config, method)),
        *mask_steps(config),
        *rounds(config),
    ]


def ladder(config: RunConfig) -> list[str]:
    """The ways to masks beside the recipe's own, whose masks are scored anyway."""
    return [m for m in dict.fromkeys(config.evaluate.ladder) if m != config.masks.method]


def steps_to_cams(config: RunConfig, needs_truth: str = "") -> list[Step]:
    """What every ablation of masks begins with."""
    return [*data_steps(config, needs_truth), *classifier_steps(config), make_cams()]


def classifier_steps(config: RunConfig) -> list[Step]:
    """(ii) Image-level labels -> a classifier; with multi-crop training a second one."""
    second = [*base_steps(), train_multicrop()] if config.multicrop.enabled else []
    return [train_classifier(), *second]


def train_classifier() -> Step:
    def make(run: Run) -> Stage:
        from pmm_ray.stages import train_classifier

        return train_classifier.stage(run.config.classifier, run.config, run.data)

    return Step("train_classifier", make, section=attrgetter("classifier"))


def base_steps() -> list[Step]:
    """The first classifier's maps of the training split -> where it is sure of a class."""

    def maps(run: Run) -> Stage:
        from pmm_ray.stages import make_cams

        config, train = run.config.base.cams, [run.config.data.train_split]
        images = run.data.labelled(*train)
        classifier, name = run["train_classifier"], "make_base_cams"
        return make_cams.stage(config, run.data, classifier, images, chosen_by=train, name=name)

    def masks(run: Run) -> Stage:
        from pmm_ray.stages import make_base_masks

        return make_base_masks.stage(run.config.base, run["make_base_cams"])

    return [
        Step("make_base_cams", maps, pool="base.cams.actors"),
        Step("make_base_masks", masks, pool="base.tasks"),
    ]


def train_multicrop() -> Step:
    def make(run: Run) -> Stage:
        from pmm_ray.stages import train_multicrop

        return train_multicrop.stage(run.config.multicrop, run.config, run["make_base_masks"])

    return Step("train_multicrop", make, section=attrgetter("multicrop"))


def last_classifier(run: Run) -> StageFolder:
    """The one that makes the CAMs."""
    return run["train_multicrop" if run.config.multicrop.enabled else "train_classifier"]


def make_cams(*, streamed: bool = False) -> Step:
    """(iii) Classifier -> class activation maps of both splits (Eq. 1)."""

    def make(run: Run) -> Stage:
        from pmm_ray.stages import make_cams

        splits = [run.config.data.train_split, run.config.data.held_out_split]
        images, classifier = run.data.labelled(*splits), last_classifier(run)
        return make_cams.stage(run.config.cams, run.data, classifier, images, chosen_by=splits)

    return Step("make_cams", make, streamed=streamed, pool="cams.actors")


def walk_steps() -> list[Step]:
    """CAMs -> CAMs after a random walk, by an affinity network (Tab. 2 and 3)."""

    def labels(run: Run) -> Stage:
        from pmm_ray.stages import make_affinity_labels

        split = run.config.data.train_split
        return make_affinity_labels.stage(run.config.affinity, run.data, run["make_cams"], split)

    def network(run: Run) -> Stage:
        from pmm_ray.stages import train_affinity

        return train_affinity.stage(run.config, run["make_affinity_labels"])

    def walk(run: Run) -> Stage:
        from pmm_ray.stages import walk_cams

        return walk_cams.stage(run.config.affinity, run["make_cams"], run["train_affinity"])

    return [
        Step("make_affinity_labels", labels),
        Step("train_affinity", network, section=attrgetter("affinity")),
        Step("walk_cams", walk, pool="affinity.walk.actors"),
    ]


def recipe_cams(run: Run) -> StageFolder:
    """The CAMs that the recipe's masks are made of."""
    return run["walk_cams" if run.config.affinity.enabled else "make_cams"]


def choose_alpha(config: RunConfig) -> Step:
    """`masks.alpha: auto` -> the best exponent, pinned in `resolved.yaml`.

    By held-out ground truth where some can be used, else by the classifier: see `judge_masks`.
    """
    name, held_out = "sweep_masks-alpha", config.data.held_out_split

    def make(run: Run) -> Stage:
        from pmm_ray.stages import sweep_masks

        if not run.data.scorable(held_out):
            return by_classifier(run)
        grid = sweep_masks.grid({"alpha": sweep_masks.AUTO_ALPHAS})
        cams, method = recipe_cams(run), run.config.masks.method
        return sweep_masks.stage(run.config, run.data, cams, grid, method=method, name=name)

    def by_classifier(run: Run) -> Stage:
        from pmm_ray.stages import judge_masks, sweep_masks

        grid = sweep_masks.grid({"alpha": sweep_masks.AUTO_ALPHAS})
        cams, classifier, method = recipe_cams(run), last_classifier(run), run.config.masks.method
        return judge_masks.stage(
            run.config, run.data, cams, classifier, grid, method=method, name=name
        )

    def pin(run: Run) -> None:
        from pmm_ray.report.sweeps import how_chosen

        summary = run[name].finished()
        run.say(how_chosen(summary))
        if "not_scored" in summary.details:
            run.folders[name] = run.session.do(by_classifier(run))
            summary = run[name].finished()
            run.say(how_chosen(summary))
        chosen = summary.details["chosen"]
        if not chosen:
            raise CannotRunError("masks.alpha: auto: set masks.alpha to a number, see `pmm ablate`")
        masks = run.config.masks.model_copy(update=chosen)
        run.config = run.config.model_copy(update={"masks": masks})

    return Step(name, make, after=pin, pool="masks.tasks")


def ladder_steps(config: RunConfig, method: str) -> list[Step]:
    """Another way from CAM to mask (Tab. 2), on held-out images with truth, and its scores.

    CAM argmax is scored with its best exponent, as papers do: see `CAM_ALPHAS`.
    """
    name, held_out = f"make_masks-{method}", config.data.held_out_split
    searched = f"sweep_masks-{method}"

    def search(run: Run) -> Stage | None:
        from pmm_ray.stages import sweep_masks

        cams = recipe_cams(run)
        if cams.summary() is None or not run.data.scorable(held_out):
            return None  # CAMs that are streamed cannot be read twice
        grid = sweep_masks.grid({"alpha": sweep_masks.CAM_ALPHAS})
        return sweep_masks.stage(
            run.config, run.data, cams, grid, images=None, method=method, name=searched
        )

    def make(run: Run) -> Stage | None:
        wanted = run.data.scorable(held_out)
        if not wanted:
            return None
        return masks_of(run, recipe_cams(run), method, name, wanted, best(run))

    def best(run: Run) -> dict[str, float]:
        found = run.folders.get(searched)
        return {} if found is None else found.finished().details["chosen"]

    def title(run: Run) -> str:
        found = best(run)
        exponent = f", alpha {found['alpha']:g} (the best)" if found else ""
        return MASK_METHODS[method].title + exponent

    scored = evaluation(f"evaluate-{method}", title, name, held_out)
    steps = [Step(name, make, pool="masks.tasks"), scored]
    if method != "cam_argmax":
        return steps
    return [Step(searched, search, pool="masks.tasks"), *steps]


def mask_steps(config: RunConfig) -> list[Step]:
    """(iv) CAMs -> pseudo-masks of both splits (Alg. 1), and their scores."""
    data, title = config.data, MASK_METHODS[config.masks.method].title

    def make(run: Run) -> Stage:
        return masks_of(run, recipe_cams(run), run.config.masks.method, "make_masks")

    found = [Step("make_masks", make, pool="masks.tasks")]
    name = f"evaluate-{config.masks.method}"
    found += [evaluation(name, title, "make_masks", data.held_out_split)]
    if config.evaluate.train_masks:
        found += [evaluation(f"{name}-train", title, "make_masks", data.train_split)]
    return found


def masks_of(
    run: Run,
    cams: StageFolder,
    method: str,
    name: str,
    among: list[str] | None = None,
    update: Mapping[str, float] | None = None,
) -> Stage:
    """Masks of the images of some CAMs, stored or not, or of those `among` them.

    `update` has fields of the section that take the place of the recipe's.
    """
    from pmm_ray.stages import make_masks

    if cams.summary() is None:
        splits = run.config.data.train_split, run.config.data.held_out_split
        model = last_classifier(run).path("model.pt")
        maps = Cams(run.data.labelled(*splits), cams.hash, streamed_from=model)
    else:
        maps = Cams.of(cams)
    maps = maps if among is None else maps.select(among)
    masks = run.config.masks.model_copy(update=update)
    return make_masks.stage(masks, maps, method=method, name=name)
