"""Frame readers, clip sampling and batches."""
