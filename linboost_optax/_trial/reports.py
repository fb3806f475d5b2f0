"""The report of a trial: verdict, change, figures, pictures, layers."""

from __future__ import annotations

from linboost_optax._trial import page, tables
from linboost_optax._trial.analysis import Record
from linboost_optax._trial.pictures import pictures
from linboost_optax._trial.verdict import Verdict


def report(record: Record, judged: Verdict) -> str:
    """Returns the report as HTML, pictures included."""
    body = [
        page.code("What to change", tables.change(record, judged)),
        page.table(
            "Figures",
            tables.HEADER,
            tables.rows(record),
            judged.winner,
            tables.reading(record),
        ),
        *(page.figure(*each) for each in pictures(record).items()),
        page.code("Layers", record["layers"]),
    ]
    title = f"Trial: {record['task']}"
    facts = tables.facts(record)
    return page.document(title, judged.headline, judged.reasons, body, facts)
