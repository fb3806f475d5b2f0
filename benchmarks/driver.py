"""One way to run every job: parse, loop over the tasks, print, write, draw."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import needs, report, results, tasks
from benchmarks.cost import page
from benchmarks.evidence import page as evidence
from benchmarks.evidence.pages import PAGES
from benchmarks.job import BASELINE, Job, Options
from benchmarks.jobs import JOBS
from benchmarks.optimizers import OPTIMIZERS

DEFAULT = "main"
OUT = "benchmarks/results"
COMMANDS = (*JOBS, "report", "cost", "evidence")


def main(argv: Sequence[str]) -> None:
    """Run a job, or make the report, the page of costs or those of evidence."""
    args = parser().parse_args(with_default(argv))
    if args.job == "report":
        _report(args.results, args.readme)
    elif args.job == "cost":
        _cost(args.results)
    elif args.job == "evidence":
        _evidence(args.results)
    else:
        job = JOBS[args.job]
        chosen = options(job, args)
        # Where a job brings trainers of its own, a name is not that of an optimizer.
        if all(name in OPTIMIZERS for name in job.all_optimizers):
            refuse(chosen)
        run(job, chosen)


def run(job: Job, options: Options) -> None:
    """Run a job on each of its tasks and report what came out."""
    facts = results.facts()  # first: the checkout may change while a long job runs
    folder = Path(options.out)
    found = []
    for task in options.tasks:
        result = {"facts": facts, "job": job.name, "task": task}
        result = results.rounded(result | job.run(task, options))
        found.append(result)
        path = folder / f"{job.name}-{task}"
        results.write(path.with_suffix(".json"), result)
        written = [f"{path}.json"]
        if job.figure is not None:
            job.figure(result, path.with_suffix(".png"))
            written.append(f"{path}.png")
        print(f"\n{result['title']}\n\n{job.table(result)}\n", flush=True)
        # A report beside the results never disagrees with them, even if a task fails.
        if report.path_for(folder).is_file():
            written.append(str(report.write(folder)))
        print(f"Wrote {', '.join(written)}", flush=True)
    if job.across is not None and len(found) > 1:
        print(f"\n{job.across(found)}", flush=True)


def refuse(options: Options) -> None:
    """Refuse optimizers that a task cannot give what they need, before anything runs.

    Raises:
      SystemExit: with the reason.
    """
    for name in options.optimizers:
        if name not in OPTIMIZERS or not OPTIMIZERS[name].needs:
            continue
        for each in options.tasks:
            # A quick task has smaller batches, and proves no less that it runs.
            listed = each in tasks.TASKS
            task = tasks.load(each, text=options.text) if listed else None
            reason = needs.refusal(OPTIMIZERS[name].needs, task)
            if reason is not None:
                raise SystemExit(
                    f"`--optimizers {name}` cannot run on `--tasks {each}`: {reason}"
                )


def with_default(argv: Sequence[str]) -> list[str]:
    """Name the default job where the command line names none."""
    named = argv and (argv[0][0] != "-" or argv[0] in ("-h", "--help"))
    return list(argv) if named else [DEFAULT, *argv]


def parser() -> argparse.ArgumentParser:
    """The command line: one subcommand for each job, with the options it has."""
    result = argparse.ArgumentParser(
        "python -m benchmarks",
        description="Every number in README.md and benchmarks/RESULTS.md.",
        epilog=f"Without a job, `{DEFAULT}` runs.",
    )
    jobs = result.add_subparsers(dest="job", metavar="job", required=True)
    for job in JOBS.values():
        _add_job(jobs, job)
    made = jobs.add_parser("report", help="RESULTS.md from the JSON of all jobs")
    made.add_argument(
        "--readme", action="store_true", help="print the table of README.md instead"
    )
    drawn = jobs.add_parser("cost", help="the tables and the figure of docs/cost.md")
    shown = jobs.add_parser("evidence", help="docs/evidence_*.md and their pictures")
    for each in (made, drawn, shown):
        each.add_argument("--results", default=OUT, help="the folder of the JSON files")
    return result


def options(job: Job, args: argparse.Namespace) -> Options:
    """What the parsed command line asks of a job; the baseline runs, and first."""
    others = (name for name in getattr(args, "optimizers", ()) if name != BASELINE)
    seeds = getattr(args, "seeds", None) or (1 if args.quick else job.seeds or 1)
    folder = getattr(args, "folder", None)
    return Options(
        tasks=tuple(args.tasks or (*job.tasks, *(job.in_folder if folder else ()))),
        optimizers=(BASELINE, *others) if job.optimizers else (),
        seeds=seeds,
        # A smoke run must not replace results that took an hour.
        out=args.out or (f"{OUT}/quick" if args.quick else OUT),
        quick=args.quick,
        text=getattr(args, "text", None),
        folder=folder,
    )


def _report(folder: str, readme: bool) -> None:
    try:
        if readme:
            print(report.readme_table(results.read_all(folder)))
        else:
            print(f"Wrote {report.write(Path(folder))}")
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error


def _cost(folder: str) -> None:
    try:
        written = page.write(Path(folder), results.read_all(folder))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(f"Wrote {', '.join(map(str, written))}")


def _evidence(folder: str) -> None:
    try:
        found = results.read_all(folder)
        for each in PAGES:
            for path in evidence.write(report.docs_for(Path(folder)), each, found):
                print(f"Wrote {path}")
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error


def _add_job(jobs: argparse._SubParsersAction, job: Job) -> None:
    made = jobs.add_parser(job.name, help=job.title, description=job.reading)
    choices = job.all_tasks or job.tasks
    made.add_argument("--tasks", nargs="+", choices=choices)
    if job.optimizers:
        made.add_argument(
            "--optimizers",
            nargs="+",
            choices=job.all_optimizers,
            default=job.optimizers,
        )
    if job.seeds is not None:
        made.add_argument(
            "--seeds", type=_positive, help=f"how many (default {job.seeds})"
        )
    if job.reads_text:
        which = ", ".join(name for name in tasks.TASKS if tasks.TASKS[name].reads_text)
        made.add_argument("--text", metavar="FILE", help=f"the text of {which}")
    if job.in_folder:
        which = ", ".join(job.in_folder)
        made.add_argument("--folder", metavar="FOLDER", help=f"the data of {which}")
    made.add_argument("--out", help=f"the folder to write to (default {OUT})")
    made.add_argument(
        "--quick",
        action="store_true",
        help=f"a few steps: a smoke run (writes to {OUT}/quick)",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {value}")
    return value
