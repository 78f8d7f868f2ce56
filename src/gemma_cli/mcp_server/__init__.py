"""The memory as an MCP server: tools and resources over `PythonRAGBackend`, on stdio and streamable HTTP. Nothing here
imports `gemma_cli.rag` before a tool needs it, so that a client gets the list of tools at once."""
