"""Dense CRF inference: `DenseCrf` for one image, `CrfParameters` for its numbers."""

from pmm_ray.method.crf.dense_crf import DenseCrf
from pmm_ray.method.crf.merging import merge_weak_labels
from pmm_ray.method.crf.parameters import CrfParameters

__all__ = ["CrfParameters", "DenseCrf", "merge_weak_labels"]
