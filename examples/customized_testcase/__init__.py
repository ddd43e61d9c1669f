"""A customized test case: `nn-meter register --testcase examples/customized_testcase/meta.yaml`."""
