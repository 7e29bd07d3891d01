"""From problems to pairs: sample, verify, label steps, score, pair, convert."""
