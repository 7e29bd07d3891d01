"""Is the final answer right? Reading answers, verifiers, killable workers; and when two answers mean the same."""
