"""`python -m gemma_cli` is the command `gemma-rag`."""

from gemma_cli.cli import main

main()
