"""The commands: parse flags, run, print."""
