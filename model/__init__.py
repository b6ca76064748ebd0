"""The detector, COCO data, training, evaluation and inference. Knows nothing of sweeps, tracking or engines."""
