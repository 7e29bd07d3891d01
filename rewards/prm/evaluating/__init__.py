"""How good a PRM is: benchmarks with step labels and their metrics."""
