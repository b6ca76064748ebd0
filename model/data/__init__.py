"""COCO-format data: sources, index, augmentation, batches. Knows nothing of the network."""
