"""What the doors for agents and programs share: opening the backend, answers, errors, listening. Nothing here imports
`gemma_cli.rag` before a call needs it, so that a door answers at once."""
