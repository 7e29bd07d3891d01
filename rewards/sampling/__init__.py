"""Backends that draw completions from a policy; each is a `rewards.sampling.generator.Generator`."""
