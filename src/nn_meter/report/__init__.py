"""Showing what was found: pages to look at in a browser.

Who lives here: `kernel_picture`.
"""
