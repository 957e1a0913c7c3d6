"""Training: losses, the Lightning module, the time budget and the run folder."""
