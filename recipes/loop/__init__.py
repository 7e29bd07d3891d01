"""The loop: stages in order, one settings file, several rounds."""
