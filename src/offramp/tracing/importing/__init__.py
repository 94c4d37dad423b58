"""Exit heads that others trained: tensors of safetensors files, found by a key map, made into exit heads."""
