"""Backends that draw completions from a policy; each satisfies `rewards.sampling.generator.Generator`."""
