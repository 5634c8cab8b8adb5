"""One training step: by autograd or by the fused kernels, from a new run to its result."""
