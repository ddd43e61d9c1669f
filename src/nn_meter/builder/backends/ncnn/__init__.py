"""Ncnn on the CPU of this host, and by Vulkan on a GPU.

Who lives here: `backend`, `settings`, `convert` (running pnnx), `graph` (reading what it wrote),
`merge` (many models through one run of pnnx), `weights` (which layer reads which of them);
`vulkan`, and `vulkan_counts`, which counts what the GPU is given to run.
"""
