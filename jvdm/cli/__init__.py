"""The command line: flags, the modes, and errors in one line.

Everything that a mode does is in the packages below; here it is called and printed.
"""
