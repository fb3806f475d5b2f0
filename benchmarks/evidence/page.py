"""What `python -m benchmarks evidence` writes: two pages, and a picture a claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import figures, report
from benchmarks.evidence.claim import (
    FAILS,
    HOLDS,
    IN_PART,
    Case,
    Claim,
    Found,
    Proof,
    Values,
    Verdict,
    quartiles,
)
from benchmarks.evidence.figure import draw
from benchmarks.job import Result
from benchmarks.jobs import JOBS
from benchmarks.tables import table

ORDER = (FAILS, IN_PART, HOLDS)  # what falls short comes first


@dataclass(frozen=True)
class Page:
    """One paper: the claims that are measured, and those that tests prove.

    `leading` is the label of the competitor whose verdicts sort the claims: what the
    library recommends.
    """

    file: str
    title: str
    preface: str
    leading: str
    claims: tuple[Claim, ...]
    proofs: tuple[Proof, ...]


def write(docs: Path, page: Page, found: Found) -> list[Path]:
    """Writes a page and the pictures of its claims."""
    written = []
    measured = {claim.name: claim.measured(found) for claim in page.claims}
    labels = competitors(page, measured)
    for claim in page.claims:
        path = docs / picture(claim)
        figures.save_small(draw(claim, measured[claim.name], labels), path)
        written.append(path)
    (docs / page.file).write_text(render(page, found))
    return [docs / page.file, *written]


def picture(claim: Claim) -> str:
    """Where the picture of a claim is, from the page."""
    return f"figures/evidence/{claim.name}.png"


def render(page: Page, found: Found) -> str:
    """The whole page, from JSON."""
    measured = {claim.name: claim.measured(found) for claim in page.claims}
    claims = sorted(
        page.claims, key=lambda claim: _rank(page, claim, measured[claim.name])
    )
    parts = [
        f"# {page.title}",
        page.preface.strip(),
        "Made by `python -m benchmarks evidence` from the JSON in "
        "`benchmarks/results`; a test holds the page to it, so change it there.",
        "## Every claim, what falls short first",
        summary(page, claims, measured),
        "A claim *holds* where it holds on every case, *in part* where on half of them "
        "or more. A case is a task, a data set or a size; it holds where the median "
        "over its seeds is within the limit that its section names.",
    ]
    for claim in claims:
        parts.append(section(claim, measured[claim.name], found))
    parts += [proof_section(proof) for proof in page.proofs]
    return "\n\n".join(parts) + "\n"


def competitors(page: Page, measured: dict[str, list[Case]]) -> list[str]:
    """The labels of all that take part in a page, its leading one first."""
    labels = dict.fromkeys(
        label for cases in measured.values() for case in cases for label in case.values
    )
    return sorted(labels, key=lambda label: label != page.leading)


def summary(
    page: Page, claims: Sequence[Claim], measured: dict[str, list[Case]]
) -> str:
    """A row a claim: the verdict on what leads the page, then how others did."""
    rows = []
    for claim in claims:
        verdicts = claim.verdicts(measured[claim.name])
        main = _main(page, verdicts)
        verdict = f"{verdicts[main].words}, {_count(verdicts[main])}"
        if main != page.leading:
            verdict = f"{main}: {verdict}"
        others = [
            f"{label} {_count(each)}"
            for label, each in verdicts.items()
            if label != main
        ]
        rows.append([f"[{claim.says}](#{claim.name})", verdict, "; ".join(others)])
    for proof in page.proofs:
        rows.append([f"[{proof.says}](#{proof.name})", f"{HOLDS}, by tests", ""])
    return table(["claim", page.leading, "others"], rows, words=True)


def section(claim: Claim, cases: Sequence[Case], found: Found) -> str:
    """One claim: who makes it, what was measured, a table and a picture."""
    ordered = [found[claim.job][task] for task in claim.tasks]
    least = "below" if claim.strict else "at most"
    limit = f"Holds where the median is {least} {claim.limit:g}."
    parts = [
        f"({claim.name})=",
        f"## {claim.says}",
        f"*{claim.where}.* {claim.reading}".strip(),
        f"Figures: {claim.quantity}; median and quartiles over the seeds. {limit}",
        details(claim, cases),
        f"![{claim.quantity}, by case.]({picture(claim)})",
        *made_by(claim, ordered),
    ]
    return "\n\n".join(parts).replace(")=\n\n##", ")=\n##", 1)


def made_by(claim: Claim, ordered: Sequence[Result]) -> list[str]:
    """The command, machine and versions of the figures, for each group of tasks."""
    job = JOBS[claim.job]
    lines = report.provenance(job, ordered)
    if len(lines) == 1 and claim.tasks != job.tasks:
        tasks = f" --tasks {' '.join(claim.tasks)}`\n"
        lines = [lines[0].replace("`\n", tasks, 1)]
    return lines


def details(claim: Claim, cases: Sequence[Case]) -> str:
    """A row a case, a column a competitor; what does not hold is in italics."""
    labels = list(dict.fromkeys(label for case in cases for label in case.values))
    rows = [
        [case.label, *(_cell(claim, case.values.get(label)) for label in labels)]
        for case in cases
    ]
    return table(["", *labels], rows)


def proof_section(proof: Proof) -> str:
    """One claim that tests prove."""
    tests = "\n".join(f"- `tests/{test}`" for test in proof.tests)
    return "\n\n".join(
        [
            f"({proof.name})=\n## {proof.says}",
            f"*{proof.where}.* {proof.reading}",
            tests,
        ]
    )


def _rank(page: Page, claim: Claim, cases: Sequence[Case]) -> tuple[int, float]:
    """Worst first, by the competitor that leads the page where it took part."""
    verdicts = claim.verdicts(cases)
    leading = verdicts[_main(page, verdicts)]
    return ORDER.index(leading.words), leading.held / leading.cases


def _main(page: Page, verdicts: Mapping[str, Verdict]) -> str:
    """Whose verdict stands for a claim: what leads the page, or else the first."""
    return page.leading if page.leading in verdicts else next(iter(verdicts))


def _count(verdict: Verdict) -> str:
    return f"{verdict.held} of {verdict.cases}"


def _cell(claim: Claim, values: Values | None) -> str:
    if values is None:
        return ""
    low, middle, high = quartiles(values)
    shown = _number(claim, middle)
    if len(values) > 1 and low != high and math.isfinite(middle):
        shown += f" [{_number(claim, low)}, {_number(claim, high)}]"
    return shown if claim.holds(values) else f"*{shown}*"


def _number(claim: Claim, value: float) -> str:
    return claim.form.format(value) if math.isfinite(value) else "never"
