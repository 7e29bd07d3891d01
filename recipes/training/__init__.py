"""Training: warm start, PRM, MPO, and what a run would do beforehand."""
