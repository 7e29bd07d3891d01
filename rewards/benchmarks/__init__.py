"""Benchmarks as a table: where each one's files come from, how it is asked and checked, its official metric."""
