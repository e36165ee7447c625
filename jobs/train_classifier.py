"""Image-level labels -> a classifier.

ray job submit --working-dir . -- python jobs/train_classifier.py RECIPE [options of `pmm run`]
"""

import sys

from pmm_ray.cli import app

if __name__ == "__main__":
    app(["run", *sys.argv[1:], "--only", "train_classifier"])
