"""A network slid over whole videos: scores and features of every frame."""
