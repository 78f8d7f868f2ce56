"""The commands of `gemma-rag`, as plain functions; `gemma_cli.cli` puts them together."""
