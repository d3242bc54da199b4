"""The command line: flags, the modes, and errors in one line."""
