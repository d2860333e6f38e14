"""The ten failed runs the project grew from: what made them fail, and the same ideas working."""
