"""TensorRT: no backend, only a reader of what ``trtexec`` printed elsewhere."""
