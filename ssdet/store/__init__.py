"""The store of stages: a local folder or a remote file system with a local mirror."""
