"""The stages in order: section 3.5 of the paper.

    photographs + image-level labels -> classifier -> CAMs -> pseudo-masks -> segmenter
                                             ^ better pseudo-masks <- relabel <-|

The classifier may be two: base masks from the first one's CAMs relabel the windows that the second
one is trained on (multi-crop training).

Each arrow is a stage on Ray, each thing between two arrows a table. A stage is named by a hash of
all that can change its result, so running the pipeline again runs just what is not done yet.
"""

from __future__ import annotations

from typing import Any

from pmm_ray.config import RunConfig, section_hash, to_yaml
from pmm_ray.cycle_pipeline import CyclePipeline, planned_rounds
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import read_index
from pmm_ray.runtime.core.session import EndOfSelection, Session, base_name
from pmm_ray.runtime.core.stage import StageFolder, Summary
from pmm_ray.walk_pipeline import WalkPipeline, planned_walk

LADDER_TITLES = {"cam_argmax": "CAM argmax", "crf_argmax": "CRF argmax"}


def planned_stages(config: RunConfig) -> tuple[str, ...]:
    """Names of all stages of a recipe, in order. Evaluations are skipped where truth is absent."""
    drawn = config.data.source in ("coco14", "coco") and config.data.ground_truth != "none"
    plan = ["import_data", *(["rasterize_masks"] if drawn else [])]
    plan += ["train_classifier"]
    if config.multicrop.enabled:
        plan += ["make_base_cams", "make_base_masks", "train_multicrop"]
    plan += ["make_cams", *planned_walk(config)]
    plan += ["sweep-alpha"] if config.masks.alpha == "auto" else []
    for method in config.evaluate.ladder:
        plan += [f"make_masks-{method}", f"evaluate-{method}"]
    plan += ["make_masks", "evaluate-ppmg"]
    plan += ["evaluate-ppmg-train"] if config.evaluate.train_masks else []
    return (*plan, *planned_rounds(config))


def run_stages(session: Session, pipeline: Pipeline | None = None) -> None:
    """Run every selected stage that is not done."""
    pipeline = pipeline or Pipeline(session)
    pipeline.check_files()
    try:
        cams = pipeline.up_to_cams(streamed=pipeline.fused)
        cams = pipeline.walk(cams) if session.config.affinity.enabled else cams
        pipeline.choose_alpha(cams)
        for method in session.config.evaluate.ladder:
            pipeline.make_ladder_masks(cams, method)
        pipeline.run_rounds(pipeline.make_masks(cams))
    except EndOfSelection:
        return


class Pipeline(WalkPipeline, CyclePipeline):
    """The stages of one session, each given what it needs from those before."""

    def check_files(self) -> None:
        """Find out now, not after hours, that a file which a later training needs cannot be used.

        Raises:
            CannotRunError: see `find_weights` and `train_segmenter.model_identity`.
        """
        from pmm_ray.nets.weight_files import find_weights

        plan = self.session.selection.plan
        names = {base_name(plan[i]) for i in self.session.selection.positions}
        for section in ("classifier", "multicrop", "affinity"):
            if f"train_{section}" in names:
                config = getattr(self.config, section)
                uri = find_weights(config.weights, config.backbone)
                if uri is not None and not storage.exists(uri):
                    raise CannotRunError(f"{section}.weights: there is no file {uri}")
        if "train_segmenter" in names:
            from pmm_ray.stages import train_segmenter

            data = self.config.data
            train_segmenter.model_identity(self.config.segmenter, data.held_out_split)

    def choose_alpha(self, cams: StageFolder) -> None:
        """Resolve `masks.alpha: auto` on the held-out split, and pin it in `resolved.yaml`."""
        if self.config.masks.alpha != "auto":
            return
        from pmm_ray.stages import sweep_masks

        alphas = {"alpha": sweep_masks.AUTO_ALPHAS}
        chosen = self.search("sweep-alpha", cams, sweep_masks.grid(alphas), sweep_masks.AUTO_IMAGES)
        masks = self.config.masks.model_copy(update=chosen.details["chosen"])
        self.config = self.session.config = self.config.model_copy(update={"masks": masks})
        uri = storage.join(self.session.run_dir, "resolved.yaml")
        storage.write_bytes(uri, to_yaml(self.config).encode())

    def search(
        self, name: str, cams: StageFolder, combinations: list[dict[str, float]], limit: int
    ) -> Summary:
        """Score combinations of mask parameters on held-out images with truth."""
        from pmm_ray.stages import sweep_masks

        return sweep_masks.search(
            self.session,
            name,
            cams=cams,
            images=self._images,
            with_truth=self._with_truth(self.config.data.held_out_split),
            data_hash=[self._manifest_hash, *self._truth],
            combinations=combinations,
            limit=limit,
        )

    def make_masks(self, cams: StageFolder) -> StageFolder:
        """(iv) CAMs -> pseudo-masks of both splits (Alg. 1), and their scores."""
        masks = self._masks_stage("make_masks", cams, None, "proportional")
        data = self.config.data
        self._evaluate("evaluate-ppmg", "PPMG", masks, data.held_out_split)
        if self.config.evaluate.train_masks:
            self._evaluate("evaluate-ppmg-train", "PPMG", masks, data.train_split)
        return masks

    def make_ladder_masks(self, cams: StageFolder, method: Any) -> None:
        """The other ways from CAM to mask (Tab. 2), on the held-out split only."""
        held_out = self.config.data.held_out_split
        wanted = self._with_truth(held_out)
        if not wanted:
            return
        masks = self._masks_stage(f"make_masks-{method}", cams, wanted, method)
        self._evaluate(f"evaluate-{method}", LADDER_TITLES[method], masks, held_out)

    def make_walked_masks(self, cams: StageFolder) -> StageFolder:
        """Masks by argmax of the CAMs after a random walk (the baseline of Tab. 4 and 6)."""
        masks = self._masks_stage("make_masks-walked", self.walk(cams), None, "cam_argmax")
        held_out = self.config.data.held_out_split
        self._evaluate("evaluate-walked", "CAM and random walk", masks, held_out)
        return masks

    def _masks_stage(
        self, name: str, cams: StageFolder, wanted: list[str] | None, method: Any
    ) -> StageFolder:
        """Masks of the `wanted` images, or of all that have a CAM, from stored or streamed CAMs."""
        from pmm_ray.stages import make_masks

        config = self.config.masks
        index = self._streamed[1] if self._streamed else read_index(cams.uri)
        index = index if wanted is None else index.select(wanted)

        def run(folder: StageFolder) -> Summary:
            context = self.session.context()
            if self._streamed:
                model = self._streamed[0].path("model.pt")
                return make_masks.run_fused(
                    config, context, folder, images=index, checkpoint_uri=model, method=method
                )
            return make_masks.run(
                config, context, folder, cams=index, images=self._images, method=method
            )

        stage_hash = section_hash(config, method, cams.hash, make_masks.CODE_VERSION)
        return self.session.stage(name, stage_hash, run, input_rows=len(index))
