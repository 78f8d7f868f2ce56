"""Commands that look after the store and the model: consolidate, stats, reembed, doctor, tune."""

from typing import TYPE_CHECKING, Annotated

import typer

from gemma_cli.commands.options import Json
from gemma_cli.commands.session import ExitCode

if TYPE_CHECKING:
    from gemma_cli.rag import Plan, PythonRAGBackend
    from gemma_cli.rag.administration import BackendInfo


def consolidate(
    context: typer.Context,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what would happen.")] = False,
    days: Annotated[float, typer.Option(help="How far --plan looks ahead.")] = 7.0,
    as_json: Json = False,
) -> None:
    """Remove what has expired, move up what deserves it, link memories that say nearly the same, and encode the tokens
    of what was imported or re-embedded."""
    from gemma_cli.commands.output import counted, print_json, print_plan
    from gemma_cli.rag import MemoryConsolidator, ModelError, Plan

    async def run(backend: "PythonRAGBackend") -> "Plan | dict[str, int]":
        rules = backend.rules
        consolidator = MemoryConsolidator(backend, rules.threshold, rules.decay, token_codes=False)
        if plan:
            return await consolidator.plan(days)
        await consolidator.run_consolidation()
        try:
            if encoded := await backend.index_tokens():
                typer.echo(f"tokens of {counted(encoded, 'memory', 'memories')} encoded", err=True)
        except ModelError as error:  # the rest needs no model, and is done
            typer.echo(f"no tokens encoded: {error}", err=True)
        moved: dict[str, int] = consolidator.get_stats()["promotions_by_tier"]
        return moved

    result = context.obj.ask(run, require_model=False)
    if isinstance(result, Plan):
        if as_json:
            moves = [{"id": m.memory.id, "to": m.to_tier, "relevance": m.relevance} for m in result.moves]
            losses = [{"id": m.memory.id, "expires_at": m.expires_at, "missing": m.missing} for m in result.losses]
            print_json({"moves": moves, "losses": losses, "duplicates": result.duplicates, "days": result.days})
        else:
            print_plan(result)
            if not (result.moves or result.losses or result.duplicates):
                typer.echo(f"nothing to move, and nothing will be forgotten within {result.days:g} days", err=True)
    elif as_json:
        print_json({"promoted": sum(result.values()), "by_tier": result})
    else:
        for way, count in result.items():
            typer.echo(f"{way}: {count}")
        if not result:
            typer.echo("nothing to move", err=True)


def stats(context: typer.Context, as_json: Json = False) -> None:
    """Show how full the tiers are, how large the store is and which model it uses."""
    from dataclasses import asdict

    from gemma_cli.commands.output import print_facts, print_json

    info = asdict(context.obj.ask(lambda backend: backend.get_info(), require_model=False))
    print_json(info) if as_json else print_facts(info["memories"] | {k: v for k, v in info.items() if k != "memories"})


def reembed(context: typer.Context) -> None:
    """Go over to the configured embedding model; can be interrupted and run again."""
    from gemma_cli.commands.output import counted, progress_bar

    async def run(backend: "PythonRAGBackend") -> "tuple[int, BackendInfo, BackendInfo]":
        before = await backend.get_info()
        with progress_bar("embedding") as progress:
            done = await backend.reembed(progress=progress)
        return done, before, await backend.get_info()

    done, before, after = context.obj.ask(run, require_model=False)
    unchanged = (before.model, before.dimension) == (after.model, after.dimension)
    same = f"; the model is {after.model}, as before" if done and unchanged else ""
    typer.echo(f"{counted(done, 'memory', 'memories')} embedded{same}", err=True)


def doctor(context: typer.Context, as_json: Json = False) -> None:
    """Check the configuration, the store and the model, and say what to do about what is wrong."""
    from gemma_cli.commands.doctor import examine, print_findings
    from gemma_cli.commands.output import print_json

    findings = examine(context.obj)
    print_json(findings) if as_json else print_findings(findings)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(ExitCode.FAILED)


def tune(
    context: typer.Context,
    seconds: Annotated[float, typer.Option(min=1, max=3_600, help="How long to measure, about.")] = 60.0,
    apply: Annotated[bool, typer.Option("--apply", help="Write what was found into the configuration file.")] = False,
    as_json: Json = False,
) -> None:
    """Find the engine, threads and batch sizes that embed quickest on this machine. Without --apply only tells."""
    from gemma_cli.commands.tune import run_tune

    run_tune(context.obj.settings(), context.obj.config, seconds=seconds, apply=apply, as_json=as_json)
