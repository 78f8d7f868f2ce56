"""Memories of an assistant that nobody has: the life of Mara, who is made up, for the pictures in the documents."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

LIFETIMES: Final = {
    "working": timedelta(minutes=15),
    "short_term": timedelta(hours=1),
    "episodic": timedelta(days=7),
    "long_term": timedelta(days=30),
    "semantic": None,
}
SIZES: Final = {"working": 8, "short_term": 37, "episodic": 690, "long_term": 780, "semantic": 540}

KNOWN: Final = """
Mara takes oat milk in her flat white, never sugar
Mara is allergic to hazelnuts; almonds are fine
Her brother Jonas lives in Utrecht with two cats, Miso and Bento
The spare key is with Ada, who lives on the second floor
Mara's cello teacher is called Ines; lessons are on Wednesdays at 18:00
She prefers short answers, with a source where there is one
The flat's lease runs until the end of March
Her passport expires in June 2029
She reads on the train and answers no mail before nine
Mara's team deploys on Tuesdays and Thursdays, never on a Friday
The staging database lives on the host heron; the production one on egret
Invoices go to accounts at Ferrum, with the project's number in the subject
Her mother's birthday is the ninth of April; she likes peonies
The bicycle's frame number is noted in the blue folder
She learned Portuguese in Porto and still dreams in it sometimes
""".strip().splitlines()
"""What an assistant should never forget."""

LATELY: Final = """
The dentist moved the appointment to Thursday at half past nine
Mara asked to be reminded of the tax papers before Sunday
The train to Lisbon leaves Porto at 8:12 from platform 4
She wants the summary of the Ferrum contract in one page
The meeting with Tomas is in the small room, not online
Ines suggested the sarabande from the second suite
The parcel from the bookshop is at the neighbour's
Mara is looking for a quiet hotel near Alfama for two nights
The boiler makes a knocking noise again in the mornings
She liked the lentil soup with lemon and wants the recipe kept
Jonas arrives on Saturday at noon and stays until Monday
The review of the search branch waits for Tomas
She moved the run to tomorrow because of the rain
The password of the guest network was changed this morning
""".strip().splitlines()
"""What came up in the last hour."""

PEOPLE: Final = ("Tomas", "Ines", "Ada", "Jonas", "Priya", "Leonor", "Mara", "the landlord", "the team")
DOINGS: Final = (
    "{who} asked whether {what} can wait until {when}",
    "{who} confirmed {what} for {when}",
    "Talked with {who} about {what}; to be decided on {when}",
    "{who} sent notes on {what}, to be read by {when}",
    "Mara and {who} agreed on {what} for {when}",
    "Reminder set: {what}, with {who}, {when}",
    "{who} was unhappy with {what}; look at it again on {when}",
)
SUBJECTS: Final = """
the Ferrum invoice; the release notes; the cello recital; the trip to Lisbon; the broken boiler; the search branch; the
garden tap; the book club; the insurance form; the interview questions; the new laptop; the dinner on Saturday; the
quarterly report; the migration of the archive; the bicycle repair; the translation of chapter three; the tax papers;
the piano in the hall; the concert tickets; the photo backup; the vaccination; the talk in Ghent
""".replace("\n", " ").split(";")
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "next week")
TAGS: Final = ("home", "work", "health", "travel", "music", "family", "money")

QUESTIONS: Final = """
What milk does Mara take in her coffee?
When is the cello lesson?
Who has the spare key?
When does the train to Lisbon leave?
What did Tomas say about the search branch?
Which days are for deploys?
What is the landlord doing about the boiler?
When does Jonas arrive?
Where is the production database?
""".strip().splitlines()


def sample(chance: random.Random, tier: str) -> str:
    """One text that fits a tier."""
    if tier in ("working", "short_term"):
        return chance.choice(LATELY)
    return chance.choice(DOINGS).format(
        who=chance.choice(PEOPLE), what=chance.choice(SUBJECTS).strip(), when=chance.choice(DAYS)
    )


def memories(now: datetime, chance: random.Random) -> Iterator[dict[str, Any]]:
    """All of them, as lines of an import file."""
    for tier, size in SIZES.items():
        first = {"semantic": KNOWN, "short_term": LATELY}.get(tier, ())
        lifetime = LIFETIMES[tier]
        for number in range(size):
            age = chance.uniform(0.02, 0.9) * (lifetime or timedelta(days=200))
            created = now - age
            yield {
                "content": first[number] if number < len(first) else sample(chance, tier),
                "memory_type": tier,
                "importance": round(chance.triangular(0.2, 0.7, 0.45), 2),
                "created_at": created.isoformat(),
                "access_count": min(int(chance.expovariate(0.6)), 6),
                "expires_at": None if lifetime is None else (created + lifetime).isoformat(),
                "tags": chance.sample(TAGS, 2),
                "actor": chance.choice(("Mara", "assistant")),
            }


def start() -> datetime:
    return datetime.now(UTC)
