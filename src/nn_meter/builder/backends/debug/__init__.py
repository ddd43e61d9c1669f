"""A backend that needs nothing and answers random latencies, for trying the flow.

Who lives here: `backend`, `settings`.
"""
