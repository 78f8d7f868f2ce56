"""The memory as an MCP server: tools and resources over `PythonRAGBackend`, on stdio and streamable HTTP."""
