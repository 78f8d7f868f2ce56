"""Tools around Gemma models. The memory for agents is `gemma_cli.rag`."""
