"""CAMs and class scores of other programs: told apart, read, brought to their photographs."""
