"""Networks: backbones, their weights, classifiers and the segmenter."""
