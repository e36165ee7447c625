"""The permutohedral lattice: pixels are placed, vertices numbered and linked, values filtered."""
