"""What knows the cluster: connecting, placing work, looking at nodes, submitting jobs."""
