"""`gemma-rag config`: show, path, validate."""

from pathlib import Path

import typer


def show(context: typer.Context) -> None:
    """Print the values in use and where each is from, as a file that can be used."""
    typer.echo(context.obj.settings().to_toml(origins=True), nl=False)


def path(context: typer.Context) -> None:
    """Print the configuration files in the order in which they are looked at; the first that has a key decides it."""
    from gemma_cli.rag.settings import LOCAL_CONFIG, user_config_file

    files = [context.obj.config, Path.cwd() / LOCAL_CONFIG, user_config_file()]
    for file in files:
        if file is not None:
            typer.echo(f"{file}{'' if file.exists() else '  (not there)'}")


def validate(context: typer.Context) -> None:
    """Check every configuration file and variable; the exit code is 2 if one is wrong."""
    context.obj.settings()
    typer.echo("the configuration is valid", err=True)
