"""Pseudo-masks -> the segmenter, with its cyclic rounds: everything after the pseudo-masks.

ray job submit --working-dir . -- python jobs/train_segmenter.py RECIPE [options of `pmm run`]
"""

import sys

from pmm_ray.cli import app

if __name__ == "__main__":
    app(["run", *sys.argv[1:], "--from", "train_segmenter-r0"])
