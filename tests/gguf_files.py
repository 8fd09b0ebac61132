"""Small GGUF files, written by the package `gguf`."""
