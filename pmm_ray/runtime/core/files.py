"""The names of the fixed files in a run folder."""

from __future__ import annotations

MANIFEST_FILE = "manifest.parquet"
"""The images of a data set, see `manifest`."""
IMPORT_MARKER = ".pmm-import"
"""Of a folder that an import fills, until its manifest is there; see `marker`."""
MASKS_MARKER = ".stage"
"""Of a folder that a command fills with masks: the hash of the stage that made them."""
TRUTH_MARKER = ".truth"
"""Of a folder that an import draws ground truth into: the hash of the stage that drew it."""
RECORD_FILE = "run.json"
"""What ran in a run's folder, see `record`."""
SUMMARY_FILE = "summary.json"
"""What a finished stage says of itself, see `stage.Summary`."""
RESOLVED_FILE = "resolved.yaml"
"""The configuration of a run, with what was decided on the way."""
