"""RESULTS.md and guides: every table of every job, from the JSON that jobs wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import comparison, results
from benchmarks.job import Job, Result
from benchmarks.jobs import JOBS

Results = dict[str, dict[str, Result]]  # by job and task

# The table of README.md: what it is about, where it wins, and where it does not.
README_TASKS = ("digits_autoencoder", "autoencoder_784", "cnn", "transformer", "gru")
README_OPTIMIZERS = ("adam", "muon", "soap", "polar")

INTRODUCTION = """\
# Results

Made by `python -m benchmarks report` from the JSON files in `results/`; a test holds it
to them, so change neither by hand.

Competitors take turns, a block of steps each, and the one that goes first changes, so
ratios are steadier than seconds; neither compilation nor evaluation is on the clock.
Every optimizer has its learning rate tuned on the first seed, on a grid over a range of
100 and up to two steps beyond while the best is at its edge, under the same schedule
(5 % warm-up, then a cosine to zero). "LNB" and "whiten(Adam)" are all defaults,
"incomplete Cholesky" is the statistic `moments`, "Gram matrices" the statistic `gram`.
"""


def write(folder: Path) -> Path:
    """Make the report beside the folder of the JSON files, and the guides."""
    path, found = path_for(folder), results.read_all(folder)
    path.write_text(render(found))
    for name, text in guides(found).items():
        if docs_for(folder).is_dir():  # there are none beside other folders
            (docs_for(folder) / name).write_text(text)
    return path


def path_for(folder: Path) -> Path:
    """Where the report of a folder is."""
    return folder.parent / "RESULTS.md"


def docs_for(folder: Path) -> Path:
    """Where the guides of a folder are."""
    return folder.parent.parent / "docs"


def render(found: Results) -> str:
    """The whole report."""
    jobs = [job for job in JOBS.values() if job.guide is None]
    sections = [section(job, found.get(job.name, {})) for job in jobs]
    return "\n".join([INTRODUCTION, *sections])


def guides(found: Results) -> dict[str, str]:
    """The text of every guide whose job was run, by its file's name."""
    return {
        job.guide: guide(job, found[name])
        for name, job in JOBS.items()
        if job.guide is not None and name in found
    }


def guide(job: Job, found: dict[str, Result]) -> str:
    """A file of its own: what a section has, after a preface."""
    made = (
        f"Tables are made by `python -m benchmarks report` from the JSON of `python -m "
        f"benchmarks {job.name}`; a test holds them to it, so change neither by hand."
    )
    text = section(job, found).replace("## ", "# ", 1)
    text = text.replace("\n### ", "\n## ")
    heading, _, rest = text.partition("\n\n")
    return "\n\n".join([heading, job.preface.strip(), f"{made}\n\n{rest}"])


def readme_table(found: Results) -> str:
    """The short table of README.md, medians over the seeds.

    Raises:
        ValueError: when a task that the table has was not run.
    """
    races = found.get("whiten", {})
    missing = [task for task in README_TASKS if task not in races]
    if missing:
        raise ValueError(
            f"The table of README.md has the tasks {', '.join(README_TASKS)}, and "
            f"there is no JSON of {', '.join(missing)}. Run `python -m benchmarks "
            f"whiten --tasks {' '.join(missing)}`."
        )
    return comparison.short([races[task] for task in README_TASKS], README_OPTIMIZERS)


def section(job: Job, found: dict[str, Result]) -> str:
    """One job: its tables, how to read them, and what they were measured with."""
    known = [task for task in job.all_tasks or job.tasks if task in found]
    ordered = [found[task] for task in known]
    if not ordered:
        return f"## {job.title}\n\nNo results yet: `python -m benchmarks {job.name}`.\n"
    parts = [f"## {job.title}", *provenance(job, ordered), job.reading]
    if job.across is not None:
        parts.append(job.across(ordered))
    if job.across is None or job.single:
        for result in ordered:
            parts += [f"### {result['title']}", job.table(result)]
    return "\n\n".join(parts) + "\n"


def provenance(job: Job, ordered: Sequence[Result]) -> list[str]:
    """Command and facts; once where all tasks share them, else for each group."""
    groups: dict[str, list[str]] = {}
    for result in ordered:
        line = f"`{command(job, result)}`\n\n{facts(result)}"
        groups.setdefault(line, []).append(result["task"])
    if len(groups) == 1:
        return list(groups)
    return [
        line.replace("`\n", f" --tasks {' '.join(tasks)}`\n", 1)
        for line, tasks in groups.items()
    ]


def command(job: Job, result: Result) -> str:
    """What made a result."""
    seeds = result.get("seeds")
    option = f" --seeds {seeds}" if seeds not in (None, job.seeds) else ""
    option += " --folder FOLDER" if result.get("task") in job.in_folder else ""
    return f"python -m benchmarks {job.name}{option}"


def facts(result: Result) -> str:
    """Machine, versions, commit and seeds in one sentence."""
    known: dict[str, Any] = result["facts"]
    versions = ", ".join(f"{name} {found}" for name, found in _shown(known["versions"]))
    cores = f"{known['cores']} core{'s' if known['cores'] != 1 else ''}"
    machine = f"{known['processor']}, {cores}, {known['device']}"
    seeds = result.get("seeds")
    count = f", {seeds} seed{'s' if seeds != 1 else ''}" if seeds else ""
    commit = known.get("commit", "unknown")
    return f"Measured on {machine}, at commit {commit}{count}, with {versions}."


def _shown(versions: dict[str, str]) -> Iterable[tuple[str, str]]:
    """All but those that other versions imply."""
    return ((name, found) for name, found in versions.items() if name != "jaxlib")
