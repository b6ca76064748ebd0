"""ONNX export, TensorRT engines and their measured accuracy. Knows nothing of sweeps."""
