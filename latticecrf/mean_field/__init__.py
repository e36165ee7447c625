"""Mean field: scores and the filters of an image become posteriors."""
