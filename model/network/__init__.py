"""The Deformable DETR network in plain PyTorch. Knows tensors only: no files, no datasets, no Lightning."""
