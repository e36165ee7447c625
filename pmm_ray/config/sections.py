"""A whole recipe and its small sections. Every field has a unit and, if any, a source."""

from __future__ import annotations

from pydantic import Field, model_validator

from pmm_ray.config.affinity import AffinityConfig
from pmm_ray.config.backbones import BackboneName
from pmm_ray.config.base import Natural, Positive, Scale, Section, execution
from pmm_ray.config.classifier import CamsConfig, ClassifierConfig, MulticropConfig
from pmm_ray.config.data import DataConfig
from pmm_ray.config.masks import BaseConfig, MaskMethodName, MasksConfig
from pmm_ray.config.segmenter import CyclesConfig, PredictConfig, SegmenterConfig


class EvaluateConfig(Section):
    """What is scored against ground truth, where there is any."""

    ladder: tuple[MaskMethodName, ...] = ("cam_argmax", "crf_argmax")
    """Further ways from CAM to mask, see `masks.method`, scored on the held-out split (Tab. 2)."""
    train_masks: bool = True
    """Also score the pseudo-masks of the training split."""


class AblateConfig(Section):
    """Settings of the paper's tables, beside the recipe's own sections."""

    backbones: tuple[BackboneName, ...] = ()
    """Tab. 1: its networks (paper: resnet38, res2net101, scalenet101); empty: the recipe's."""
    weights: dict[BackboneName, str] = Field(default_factory=dict)
    """Tab. 1: weights of networks, as `classifier.weights`; else the recipe's, else `imagenet`."""
    alphas: tuple[Scale, ...] = Field((1, 2, 3, 4, 5, 6, 8, 11, 14, 17, 20), min_length=1)
    """Background exponents to score every row with; the best one counts (paper: a grid
    search over 0..20). Rows of CAMs alone have the exponents of thresholds 0.02 to 0.6."""

    @model_validator(mode="after")
    def _each_once(self) -> AblateConfig:
        for name in ("backbones", "alphas"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"ablate.{name} lists a value twice: {list(values)}")
        return self


class ErrorsConfig(Section):
    """How many images may fail."""

    budget: int | None = execution(None, ge=0)
    """Images per stage; empty: the larger of 10 and 1 %. Those that a run cannot score do not
    count."""


class ReportConfig(Section):
    """The HTML report."""

    gallery: int = execution(12, ge=0)
    """Images shown."""
    filled: Natural = execution(0)
    """Say the mean over the classes with at least so many training images, too; 0: over all only.
    Small data sets have classes that nothing could be learnt of."""


class NodeType(Section):
    """A shape of nodes, as it is declared to Ray."""

    cpus: float = execution(..., gt=0)
    """CPUs of one node."""
    gpus: float = execution(0.0, ge=0)
    """GPUs of one node."""
    memory: float = execution(0.0, ge=0)
    """Memory of one node for tasks, bytes; 0: not known."""
    count: Positive = execution(1)
    """How many there may be."""
    labels: dict[str, str] = execution({})
    """Ray's labels of such a node. For `precision: auto` one with GPUs needs its card, such as
    `{ray.io/accelerator-type: L4}`."""


class RuntimeConfig(Section):
    """How the machine is used."""

    cpus: int | None = execution(None, gt=0)
    """CPUs of a Ray that the command starts itself; empty: all."""
    object_store_bytes: int | None = execution(None, gt=0)
    """Object store of a Ray that the command starts itself, bytes; empty: Ray's default, capped."""
    stall_seconds: float = execution(900.0, gt=0)
    """A stage fails, and says what it waits for, when no image finishes for this long although
    nodes are there to work on it, s."""
    nodes_seconds: float = execution(3600.0, gt=0)
    """How long a stage may wait for nodes that hold its workers, s."""
    prepare_seconds: float = execution(1800.0, gt=0)
    """How long a training may prepare its data without progress, s."""
    heartbeat_seconds: float = execution(10.0, gt=0)
    """Time between two progress lines in log files, s."""
    cpu_labels: dict[str, str] = execution({})
    """Labels of the nodes where stages without a GPU run, for example {pool: cpu}; empty: the nodes
    without a GPU, or all nodes where each has one."""
    autoscaled_nodes: tuple[NodeType, ...] = execution(())
    """Nodes that an autoscaler may run in all, for example
    `[{cpus: 32, count: 16}, {cpus: 48, gpus: 4, count: 2, labels: {ray.io/accelerator-type: L4}}]`;
    empty: only those that are there. A Ray that the command starts itself has no autoscaler: they
    do not count there."""
    preflight: bool = execution(True)
    """Look at every node before a run on a cluster: storage, versions, disk, GPUs."""
    scratch: str | None = execution(None)
    """Local folder of each node for memory-mapped masks; empty: `pmm-ray-UID`
    in the system's temporary folder."""


class RunConfig(Section):
    """A whole recipe."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; the default run folder is `runs/<name>`."""
    seed: int = Field(0, ge=0, le=2**63 - 1)
    """Seeds every random choice, together with the image's id."""
    data: DataConfig = DataConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    base: BaseConfig = BaseConfig()
    multicrop: MulticropConfig = MulticropConfig()
    cams: CamsConfig = CamsConfig()
    affinity: AffinityConfig = AffinityConfig()
    masks: MasksConfig = MasksConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    predict: PredictConfig = PredictConfig()
    cycles: CyclesConfig = CyclesConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    ablate: AblateConfig = AblateConfig()
    errors: ErrorsConfig = ErrorsConfig()
    report: ReportConfig = ReportConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @property
    def streams_cams(self) -> bool:
        """Whether no CAM is stored: what reads each only once makes it on the way."""
        return self.masks.fused and self.masks.alpha != "auto" and not self.affinity.enabled
