"""Runnable recipes. Only the command line, the benchmarks and the tests import them."""
