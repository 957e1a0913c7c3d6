"""CPU kernels: normalisation, non-linearity and gate of a feature map in as few passes over memory as there can be."""
