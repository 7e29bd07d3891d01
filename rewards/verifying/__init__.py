"""Is the final answer right? Reading answers, verifiers, killable workers."""
