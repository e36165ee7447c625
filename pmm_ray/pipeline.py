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
from pmm_ray.runtime import storage
from pmm_ray.runtime.index import TableIndex, index_file, read_index
from pmm_ray.runtime.session import EndOfSelection, Session
from pmm_ray.runtime.stage import StageFolder, Summary
from pmm_ray.walk_pipeline import WalkPipeline, planned_walk

LADDER_TITLES = {"cam_argmax": "CAM argmax", "crf_argmax": "CRF argmax"}


def planned_stages(config: RunConfig) -> tuple[str, ...]:
    """Names of all stages of a recipe, in order. Evaluations are skipped where truth is absent."""
    held_out = config.data.held_out_split
    drawn = config.data.source in ("coco14", "coco") and config.data.ground_truth != "none"
    plan = ["import_data", *(["rasterize_masks"] if drawn else [])]
    plan += ["train_classifier"]
    if config.multicrop.enabled:
        plan += ["make_cams-base", "make_base_masks", "train_multicrop"]
    plan += ["make_cams", *planned_walk(config)]
    plan += ["sweep-alpha"] if config.masks.alpha == "auto" else []
    for method in config.evaluate.ladder:
        plan += [f"make_masks-{method}", f"evaluate-{method}"]
    plan += ["make_masks", "evaluate-ppmg"]
    plan += ["evaluate-ppmg-train"] if config.evaluate.train_masks else []
    for number in range(config.cycles.rounds + 1):
        if number > 0:
            plan += [f"predict_masks-r{number}"]
            plan += [f"evaluate-cyclic-r{number}"] if config.evaluate.train_masks else []
        plan += [f"train_segmenter-r{number}", f"predict_masks-r{number}-{held_out}"]
        plan += [f"evaluate-segmenter-r{number}"]
    return tuple(plan)


def run_stages(session: Session, pipeline: Pipeline | None = None) -> None:
    """Run every selected stage that is not done."""
    pipeline = pipeline or Pipeline(session)
    try:
        cams = pipeline.up_to_cams(streamed=pipeline.fused)
        cams = pipeline.walk(cams) if session.config.affinity.enabled else cams
        pipeline.choose_alpha(cams)
        for method in session.config.evaluate.ladder:
            pipeline.make_ladder_masks(cams, method)
        masks = pipeline.make_masks(cams)
        segmenter = pipeline.train_segmenter(masks, 0)
        for number in range(1, session.config.cycles.rounds + 1):
            masks = pipeline.relabel(segmenter, number)
            segmenter = pipeline.train_segmenter(masks, number)
    except EndOfSelection:
        return


class Pipeline(WalkPipeline):
    """The stages of one session, each given what it needs from those before."""

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

    def train_segmenter(self, masks: StageFolder, number: int) -> StageFolder:
        """(v) Pseudo-masks -> a fresh segmenter; under-fitting is pretended in round 0 only."""
        from pmm_ray.stages import train_segmenter

        config = self.config.segmenter
        stage_hash = section_hash(
            config,
            *train_segmenter.model_identity(config),
            self.config.seed,
            masks.hash,
            len(read_index(masks.uri)),
            self.config.data.train_split,
            number,
            train_segmenter.CODE_VERSION,
        )
        segmenter = self.session.stage(
            f"train_segmenter-r{number}",
            stage_hash,
            lambda folder: train_segmenter.run(
                config, self.session.context(), folder, masks_uri=masks.uri, round=number
            ),
        )
        held_out = self.config.data.held_out_split
        images = index_file(self.session.manifest.uri, {"split": [held_out]})
        if len(images):
            name = f"predict_masks-r{number}-{held_out}"
            predicted = self._predict(name, segmenter, images, number)
            title = f"Segmenter, round {number}"
            self._evaluate(f"evaluate-segmenter-r{number}", title, predicted, held_out)
        return segmenter

    def relabel(self, segmenter: StageFolder, number: int) -> StageFolder:
        """(vi) Segmenter -> the next round's masks of the training split (paper 3.5)."""
        train = self.config.data.train_split
        images = index_file(self.session.manifest.uri, {"split": [train]})
        masks = self._predict(f"predict_masks-r{number}", segmenter, images, number)
        if self.config.evaluate.train_masks:
            title = f"Cyclic masks, round {number}"
            self._evaluate(f"evaluate-cyclic-r{number}", title, masks, train)
        return masks

    def _predict(
        self, name: str, segmenter: StageFolder, images: TableIndex, number: int
    ) -> StageFolder:
        from pmm_ray.stages import predict_masks

        config = self.config.predict
        return self.session.stage(
            name,
            section_hash(config, self._manifest_hash, segmenter.hash, predict_masks.CODE_VERSION),
            lambda folder: predict_masks.run(
                config,
                self.session.context(),
                folder,
                images=images,
                checkpoint_uri=segmenter.path("model.pt"),
                round_number=number,
            ),
            input_rows=len(images),
        )

    def _evaluate(self, name: str, title: str, masks: StageFolder, split: str) -> None:
        from pmm_ray.stages import evaluate

        index = read_index(masks.uri).select(self._with_truth(split))
        if not len(index):
            return
        self.session.stage(
            name,
            section_hash(
                masks.stage, masks.hash, self._manifest_hash, *self._truth, evaluate.CODE_VERSION
            ),
            lambda folder: evaluate.run(
                self.session.context(),
                folder,
                masks=index,
                images=self._images,
                title=title,
                split=split,
                masks_stage=masks.stage,
            ),
            input_rows=len(index),
        )
