"""A data set -> a manifest: one importer for each kind that is read."""
