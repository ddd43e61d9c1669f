"""An operator, a test case and a backend that nn-meter finds by entry point."""
