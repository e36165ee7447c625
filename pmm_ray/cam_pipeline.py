"""The first stages: photographs and image-level labels -> class activation maps."""

from __future__ import annotations

from typing import Any

from pmm_ray.config import CamsConfig, section_hash, to_yaml
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import TableIndex, index_file, read_index
from pmm_ray.runtime.core.session import Session, base_name
from pmm_ray.runtime.core.stage import StageFolder


class CamPipeline:
    """The stages of one session up to its CAMs, each given what it needs from those before."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.config = session.config
        self._truth: tuple[str, ...] = ()  # hash of the masks that were drawn, if any were
        self._streamed: tuple[StageFolder, TableIndex] | None = None  # classifier, its images

    @property
    def fused(self) -> bool:
        """Whether CAMs are streamed into the mask stages and never stored."""
        selection, masks = self.session.selection, self.config.masks
        makes_masks = any(base_name(selection.plan[i]) == "make_masks" for i in selection.positions)
        return masks.fused and masks.alpha != "auto" and makes_masks

    def up_to_cams(self, *, streamed: bool = False) -> StageFolder:
        """All stages from photographs to CAMs: what every ablation of masks begins with.

        Where CAMs are `streamed` none is made yet, and the folder is not written.
        """
        self.import_data()
        classifier = self.train_classifier()
        if self.config.multicrop.enabled:
            base_masks = self.make_base_masks(self.make_base_cams(classifier))
            classifier = self.train_multicrop(base_masks)
        return self.make_cams(classifier, streamed=streamed)

    def import_data(self) -> None:
        """(i) The outside world -> a manifest."""
        from pmm_ray.runtime.core.manifest import open_manifest
        from pmm_ray.stages import import_data

        data = self.config.data
        if data.source == "manifest":
            if not data.root:
                raise CannotRunError("data.source = manifest needs --set data.root=FILE.parquet")
            self.session.manifest_uri = open_manifest(data.root).uri
        else:
            stage_hash = section_hash(data, self.config.seed, import_data.CODE_VERSION)
            folder = self.session.stage(
                "import_data",
                stage_hash,
                lambda folder: import_data.run(data, self.config, folder, self.session.progress),
            )
            self.session.manifest_uri = folder.path("manifest.parquet")
            self._rasterize_masks()
        self._open_manifest()

    def _open_manifest(self) -> None:
        from pmm_ray.runtime.core.manifest import manifest_hash

        assert self.session.manifest_uri is not None
        self._manifest_hash = manifest_hash(self.session.manifest_uri)
        self._images = index_file(self.session.manifest_uri)
        if self.config.masks.alpha == "auto":
            self._check_truth()
        self._pin_auto_values()

    def _rasterize_masks(self) -> None:
        """Annotated objects -> ground-truth masks, where the data set has objects, not masks."""
        from pmm_ray.stages import rasterize_masks

        uri, data = self.session.manifest_uri, self.config.data
        assert uri is not None
        if rasterize_masks.objects_fingerprint(uri) is None:
            return
        drawn = self.session.stage(
            rasterize_masks.STAGE,
            rasterize_masks.stage_hash(data, uri),
            lambda folder: rasterize_masks.run(data, self.session.context(), folder),
            input_rows=len(rasterize_masks.images_to_draw(uri)),
        )
        self._truth = (drawn.hash,)

    def _pin_auto_values(self) -> None:
        """Resolve `workers: auto` once per run folder: trained weights depend on it."""
        uri = storage.join(self.session.run_dir, "resolved.yaml")
        earlier = None
        if storage.exists(uri) and not self.session.selection.fresh:
            import yaml

            earlier = yaml.safe_load(storage.read_bytes(uri))
        update: dict[str, Any] = {}
        for name in ("classifier", "multicrop", "affinity", "segmenter"):
            section = getattr(self.config, name)
            if section.workers == "auto":
                pinned = (earlier or {}).get(name, {}).get("workers", "auto")
                workers = self._workers(section.batch_size) if pinned == "auto" else pinned
                update[name] = section.model_copy(update={"workers": workers})
        self.config = self.session.config = self.config.model_copy(update=update)
        storage.write_bytes(uri, to_yaml(self.config).encode())

    def _workers(self, batch_size: int) -> int:
        from pmm_ray.runtime.training.sampling import split_workers

        return split_workers("auto", self.session.cluster.default_train_workers(), batch_size)

    def train_classifier(self) -> StageFolder:
        """(ii) Image-level labels -> a classifier."""
        from pmm_ray.stages import train_classifier

        config = self.config.classifier
        stage_hash = section_hash(
            config,
            weights_hash(config.weights, config.backbone),
            self.config.seed,
            self._manifest_hash,
            self.config.data.train_split,
            train_classifier.CODE_VERSION,
        )
        return self.session.stage(
            "train_classifier",
            stage_hash,
            lambda folder: train_classifier.run(config, self.session.context(), folder),
        )

    def make_base_cams(self, classifier: StageFolder) -> StageFolder:
        """First classifier -> activation maps of the training split, for the base masks."""
        train = [self.config.data.train_split]
        return self._cams_stage("make_base_cams", self.config.base.cams, classifier, train)

    def make_base_masks(self, cams: StageFolder) -> StageFolder:
        """Those maps -> where the first classifier is sure of a class (joint CRF)."""
        from pmm_ray.stages import make_base_masks

        config, index = self.config.base, read_index(cams.uri)
        return self.session.stage(
            make_base_masks.STAGE,
            section_hash(config, cams.hash, make_base_masks.CODE_VERSION),
            lambda folder: make_base_masks.run(
                config, self.session.context(), folder, cams=index, images=self._images
            ),
            input_rows=len(index),
        )

    def train_multicrop(self, base_masks: StageFolder) -> StageFolder:
        """Windows relabelled by the base masks -> the second classifier."""
        from pmm_ray.stages import train_multicrop

        config = self.config.multicrop
        stage_hash = section_hash(
            config,
            weights_hash(config.weights, config.backbone),
            self.config.seed,
            base_masks.hash,
            len(read_index(base_masks.uri)),
            self.config.data.train_split,
            train_multicrop.CODE_VERSION,
        )
        return self.session.stage(
            "train_multicrop",
            stage_hash,
            lambda folder: train_multicrop.run(
                config, self.session.context(), folder, masks_uri=base_masks.uri
            ),
        )

    def make_cams(self, classifier: StageFolder, *, streamed: bool = False) -> StageFolder:
        """(iii) Classifier -> class activation maps of both splits (Eq. 1)."""
        data = self.config.data
        splits = [data.train_split, data.held_out_split]
        return self._cams_stage(
            "make_cams", self.config.cams, classifier, splits, streamed=streamed
        )

    def _cams_stage(
        self,
        name: str,
        config: CamsConfig,
        classifier: StageFolder,
        splits: list[str],
        *,
        streamed: bool = False,
    ) -> StageFolder:
        """Maps of some splits' images; where `streamed`, only their place and what makes them."""
        from pmm_ray.stages import make_cams

        images = index_file(self.session.manifest.uri, {"split": splits})
        stage_hash = section_hash(
            config, self._manifest_hash, splits, classifier.result, make_cams.CODE_VERSION
        )
        folder = StageFolder.below(self.session.run_dir, name, stage_hash)
        if streamed and folder.summary() is None:
            self._streamed = (classifier, images)
            return folder
        return self.session.stage(
            name,
            stage_hash,
            lambda folder: make_cams.run(
                config,
                self.session.context(),
                folder,
                images=images,
                checkpoint_uri=classifier.path("model.pt"),
            ),
            input_rows=len(images),
        )

    def _check_truth(self) -> None:
        """Refuse `masks.alpha: auto` before anything is trained where it cannot be resolved."""
        split = self.config.data.held_out_split
        if not self._with_truth(split):
            raise CannotRunError(
                f"masks.alpha: auto needs images of split {split!r} with ground-truth masks, and "
                "this data set has none: set masks.alpha to a number"
            )

    def _with_truth(self, split: str) -> list[str]:
        """Ids of a split's images that have ground truth."""
        from pmm_ray.runtime.core.tables import read_table

        table = read_table(self.session.manifest.uri, ["image_id", "split", "ground_truth_uri"])
        columns = (table.column(name).to_pylist() for name in table.column_names)
        return [i for i, of, truth in zip(*columns, strict=True) if of == split and truth]


def weights_hash(weights: str, backbone: str) -> str:
    """A name of packaged weights stands for itself; a file is known by its content."""
    from pmm_ray.nets.weight_files import weights_identity

    return weights_identity(weights, backbone)
