"""What a run would do, before it does it: rows, step 0, memory, and how its settings differ from the paper's."""
