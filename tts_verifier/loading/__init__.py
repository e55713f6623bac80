"""What is checked before weights are loaded: devices, paths, and the files of strangers."""
