"""CAMs -> CAMs after a random walk: the optional stages of an affinity network (Tab. 2 and 3)."""

from __future__ import annotations

from pmm_ray.cam_pipeline import CamPipeline, weights_hash
from pmm_ray.config import RunConfig, WalkConfig, section_hash
from pmm_ray.runtime.core.index import index_file, read_index
from pmm_ray.runtime.core.stage import StageFolder

WALK_STAGES = ("make_affinity_labels", "train_affinity", "walk_cams")


def planned_walk(config: RunConfig) -> tuple[str, ...]:
    """The stages that a recipe asks for."""
    return WALK_STAGES if config.affinity.enabled else ()


class WalkPipeline(CamPipeline):
    """The stages of one session up to CAMs, and those of the walk."""

    @property
    def fused(self) -> bool:
        """A walk learns from stored CAMs."""
        return super().fused and not self.config.affinity.enabled

    def walk(self, cams: StageFolder) -> StageFolder:
        """CAMs after a random walk, whether or not the recipe makes masks of them.

        Args:
            cams: the finished CAMs of both splits.
        """
        return self._walk_cams(cams, self._train_affinity(self._make_affinity_labels(cams)))

    def _make_affinity_labels(self, cams: StageFolder) -> StageFolder:
        from pmm_ray.stages import make_affinity_labels

        config, split = self.config.affinity, self.config.data.train_split
        train = index_file(self.session.manifest.uri, {"split": [split]})
        index = read_index(cams.uri).select(train.image_ids)
        stage_hash = section_hash(
            [config.alpha_low, config.alpha_high],
            config.crf,
            cams.hash,
            split,
            make_affinity_labels.CODE_VERSION,
        )
        return self.session.stage(
            make_affinity_labels.STAGE,
            stage_hash,
            lambda folder: make_affinity_labels.run(
                config, self.session.context(), folder, cams=index, images=self._images
            ),
            input_rows=len(index),
        )

    def _train_affinity(self, labels: StageFolder) -> StageFolder:
        from pmm_ray.stages import train_affinity

        config = self.config.affinity
        # neither what comes after nor whether masks are made of it changes the network
        own = config.model_copy(update={"walk": WalkConfig(), "enabled": True})
        stage_hash = section_hash(
            own,
            weights_hash(config.weights, config.backbone),
            self.config.seed,
            labels.hash,
            len(read_index(labels.uri)),
            self.config.data.train_split,
            train_affinity.CODE_VERSION,
        )
        return self.session.stage(
            train_affinity.STAGE,
            stage_hash,
            lambda folder: train_affinity.run(
                config, self.session.context(), folder, labels_uri=labels.uri
            ),
        )

    def _walk_cams(self, cams: StageFolder, network: StageFolder) -> StageFolder:
        from pmm_ray.stages import walk_cams

        config, index = self.config.affinity, read_index(cams.uri)
        return self.session.stage(
            walk_cams.STAGE,
            section_hash(config.walk, network.result, cams.hash, walk_cams.CODE_VERSION),
            lambda folder: walk_cams.run(
                config,
                self.session.context(),
                folder,
                cams=index,
                images=self._images,
                checkpoint_uri=network.path("model.pt"),
            ),
            input_rows=len(index),
        )
