"""What is made of a backend's measurements.

Who lives here: `fusion_rule_tester` (which operators the backend fuses), `utils` (the guide's place
for `Latency` and `ProfiledResults`).
"""
