"""Frame-exact reading of video files, packs and image folders, with the time of every frame."""
