"""Labels for steps: which responses, how many continuations, what the counts mean."""
