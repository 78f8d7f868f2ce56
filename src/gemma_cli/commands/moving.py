"""The command that moves memories from one store to another: migrate."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_cli.commands.options import Json
from gemma_cli.commands.session import ExitCode, check_file, missing_file

if TYPE_CHECKING:
    from gemma_cli.rag import Settings
    from gemma_cli.rag.migration import Terms
    from gemma_cli.rag.migration_report import Place, Report, Work


def migrate(
    context: typer.Context,
    from_url: Annotated[str, typer.Argument(help="Store to copy from; it may be in use meanwhile.")],
    to_url: Annotated[str, typer.Argument(help="Store to copy to: empty, or with an earlier part of the same copy.")],
    namespace: Annotated[str | None, typer.Option(help="Which one to copy; default: the configured one.")] = None,
    to_namespace: Annotated[str | None, typer.Option(help="Its name in the new store; default: the same.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Keep what the new store holds besides.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make the new store what the old one is, whatever it holds now.")
    ] = False,
    verify_only: Annotated[bool, typer.Option("--verify-only", help="Compare, and write nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be copied, and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Copy all memories to another store, exactly: ids, vectors, times, counts, pins, links. Needs no model. Can be
    interrupted and run again. Exits with 1 where the two stores are not equal afterwards."""
    import asyncio
    from dataclasses import asdict

    from gemma_cli.commands.output import print_facts, print_json
    from gemma_cli.rag import InvalidInputError
    from gemma_cli.rag.migration import Terms

    if merge and overwrite:
        raise typer.BadParameter("goes not with --merge", param_hint="--overwrite")
    if verify_only and dry_run:
        raise typer.BadParameter("goes not with --verify-only", param_hint="--dry-run")
    if context.obj.url is not None:
        raise InvalidInputError("url: migrate takes its two stores after the command, and no --url before it")
    settings = context.obj.settings()
    given = context.obj.namespace if namespace is None else namespace
    here = settings.store.namespace if given is None else given
    work = "verify" if verify_only else "preview" if dry_run else "run"
    ends = (from_url, here), (to_url, here if to_namespace is None else to_namespace)
    report = asyncio.run(_carried_out(work, ends, settings, Terms(merge, overwrite)))
    print_json(asdict(report) | {"equal": report.equal}) if as_json else print_facts(_facts(report))
    for remark in _remarks(report, work):
        typer.echo(remark, err=True)
    if not report.source.memories:
        raise typer.Exit(ExitCode.NOTHING_FOUND)
    if not report.equal and not dry_run:
        raise typer.Exit(ExitCode.FAILED)


async def _carried_out(
    work: str, ends: tuple[tuple[str, str], tuple[str, str]], settings: "Settings", terms: "Terms"
) -> "Report":
    import time

    from gemma_cli.commands.output import progress_bar
    from gemma_cli.rag.migration import Migration

    async with AsyncExitStack() as stack:
        check_file("from_url", ends[0][0])
        source = await stack.enter_async_context(_opened(*ends[0], settings))
        if missing_file(ends[1][0]) and not sum((await source.store.counts(time.time())).values()):
            work = "preview"  # nothing to copy is no reason to make a store
        target = await stack.enter_async_context(_opened(*ends[1], settings, make=work == "run"))
        rules = settings.memory.tier_rules()
        migration = Migration(source, target, rules, time.time, terms=terms, bar=progress_bar)
        report: Report = await getattr(migration, work)()
        return report


@asynccontextmanager
async def _opened(url: str, namespace: str, settings: "Settings", *, make: bool = False) -> AsyncIterator["Place"]:
    """make: write a file where there is none; otherwise an empty store in memory stands for it."""
    from gemma_cli.rag import InvalidInputError
    from gemma_cli.rag import validation as check
    from gemma_cli.rag.migration_report import Place
    from gemma_cli.rag.settings import masked_url
    from gemma_cli.rag.stores import create_store

    if url.startswith("memory:"):
        raise InvalidInputError("url: memory:// lasts as long as its process, so nothing can move from or to it here")
    url = settings.redis.redis_url() if url == "redis" else check.text("url", url)
    missing = None if make else missing_file(url)
    store = create_store("memory://" if missing else url, check.label("namespace", namespace), settings)
    await store.open()
    try:
        shown = f"sqlite:///{missing}" if missing else masked_url((await store.info()).url)
        yield Place(store, shown, namespace)
    finally:
        await store.close()


def _facts(report: "Report") -> dict[str, str]:
    """Name and value of each line; where the sides differ, both values."""
    source, target = report.source, report.target

    def both(one: object, other: object) -> str:
        return f"{one}" if one == other else f"{one} -> {other}"

    facts = {
        "from": f"{source.url}, namespace {source.namespace}",
        "to": f"{target.url}, namespace {target.namespace}",
        "memories": both(f"{source.memories:,}", f"{target.memories:,}"),
    }
    for tier, count in source.tiers.items():
        if count or target.tiers[tier]:
            facts[tier] = both(f"{count:,}", f"{target.tiers[tier]:,}")
    facts["size"] = both(f"{source.size_bytes / 1e6:,.1f} MB", f"{target.size_bytes / 1e6:,.1f} MB")
    facts["checksum"] = both(source.checksum, target.checksum)
    facts |= {name: f"{count:,}" for name, count in _counts(report.done)}
    facts |= {f"to be {name}": f"{count:,}" for name, count in _counts(report.left)}
    return facts


def _counts(work: "Work") -> Iterator[tuple[str, int]]:
    return ((f.name, count) for f in fields(work) if (count := getattr(work, f.name)))


def _remarks(report: "Report", work: str) -> Iterator[str]:
    from gemma_cli.commands.output import counted

    source = report.source
    if not source.memories:
        yield f"{source.url} holds no memory in the namespace {source.namespace}"
        return
    if report.kept:
        yield f"left as the new store has it, of what both hold: {counted(report.kept, 'memory', 'memories')}"
    if report.others:
        yield f"in the new store alone: {counted(report.others, 'memory', 'memories')}"
    for tier, excess in report.crowded.items():
        yield (
            f"{tier} is {excess:,} above [memory] {tier}_capacity: raise it, or the first memory stored there "
            "makes so many leave"
        )
    if work == "preview":
        return
    if not report.equal:
        yield "error: the new store is not equal to the old one; if that is in use, stop its users and run this again"
    elif work == "run":
        yield (
            "Every memory of the old store is in the new one, exactly. If the old one is still in use: stop its users, "
            "run this once more, and start them on the new one (GEMMA_RAG_URL, or url in [store])."
        )
