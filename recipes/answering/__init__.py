"""Test time: one answer, best of N, beam search, how good a PRM is."""
