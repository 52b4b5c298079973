"""The Open Inference Protocol's tensors: texts in, predictions out."""
