"""The memory over HTTP: a JSON API, the dashboard's page and its stream, metrics and MCP, on one port."""
