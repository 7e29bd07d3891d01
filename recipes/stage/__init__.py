"""What every stage needs: its folder and manifest, groups, kept calls, workers, quarantine, printed numbers."""
