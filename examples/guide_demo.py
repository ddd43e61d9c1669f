"""The guide's end-to-end demo, word for word; the workspace is the first argument.

    nn-meter create --tflite-workspace ws
    python examples/guide_demo.py ws
"""

import sys

workspace = sys.argv[1]

# ---- from here on as the guide prints it, but for the path ----

from nn_meter.builder import profile_models, builder_config
builder_config.init(workspace) # initialize builder config with workspace
from nn_meter.builder.backends import connect_backend
from nn_meter.builder.backend_meta.fusion_rule_tester import generate_testcases, detect_fusion_rule

# generate testcases
origin_testcases = generate_testcases()

# connect to backend
backend = connect_backend(backend_name='tflite_cpu')

# run testcases and collect profiling results
profiled_results = profile_models(backend, origin_testcases, mode='ruletest')

# determine fusion rules from profiling results
detected_results = detect_fusion_rule(profiled_results)

# ---- the guide's demo ends here ----

for name, rule in detected_results.items():
    print(f"{name:<20} {rule['verdict']}")
