"""Status of running studies."""
