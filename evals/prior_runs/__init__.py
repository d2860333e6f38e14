"""Study: why ten earlier runs failed, and the same ideas in trainings that work."""
