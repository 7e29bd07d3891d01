"""Choosing one response of several: selectors, curves over N, adaptive N, best of N, search."""
