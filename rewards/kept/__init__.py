"""Crash-safe stores: content keys, samples, calls."""
