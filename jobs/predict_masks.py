"""The segmenter -> masks of the held-out split, and the relabelled training split.

ray job submit --working-dir . -- python jobs/predict_masks.py RECIPE [options of `pmm run`]
"""

import sys

from pmm_ray.cli import app

if __name__ == "__main__":
    app(["run", *sys.argv[1:], "--only", "predict_masks"])
