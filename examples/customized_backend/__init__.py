"""A customized backend: `nn-meter register --backend examples/customized_backend/meta.yaml`."""
