"""What the command line takes and says: the table of commands, their flags, their help, the shipped settings files."""
