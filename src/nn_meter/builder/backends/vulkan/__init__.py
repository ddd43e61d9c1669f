"""What backends on Vulkan share: which devices there are, and counting what a run dispatches.

Who lives here: `devices`; `dispatches.c`, a Vulkan layer; `counter`, which builds it and speaks
with it; `watched`, which runs code below it in a process of its own.
"""
