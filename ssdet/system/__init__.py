"""The interpreter, the terminal and the operating system."""
