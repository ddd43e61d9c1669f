"""A customized operator: `nn-meter register --operator examples/customized_operator/meta.yaml`."""
