"""The memory behind other frameworks' interfaces. Each module needs its own extra, and is imported by its own name."""
