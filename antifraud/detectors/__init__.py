"""Detectors of layer B, one module each. Each has a frozen struct of thresholds and knows no other."""
