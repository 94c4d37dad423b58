"""Exit heads that others trained: named tensors of safetensors files, renamed by a key map."""
