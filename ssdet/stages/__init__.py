"""Work of each kind of stage, from its parents' folders to its own."""
