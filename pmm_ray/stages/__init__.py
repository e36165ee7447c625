"""One file a stage: a pure worker over rows, and a thin `run` that puts it on Ray."""
