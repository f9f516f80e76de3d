"""Local and remote files, their cache, and readers of untrusted text and pickles."""
