"""The tables of faults, of killed runs and of mistakes."""

from benchmarks.faults.training import COMPETITORS
from benchmarks.faults.verdict import figure
from benchmarks.job import Result
from benchmarks.tables import table


def describe(result: Result) -> str:
    """The table of one kind of fault, and how many were survived."""
    return {"interrupted": _table_of_deaths, "mistakes": _table_of_mistakes}.get(
        result["task"], _table_of_faults
    )(result)


def _table_of_faults(result: Result) -> str:
    names = list(result["rows"][0]["cells"])
    rows, survived = [], dict.fromkeys(names, 0)
    for row in result["rows"]:
        cells = row["cells"]
        rows.append([row["label"], *(figure(cells[name]) for name in names)])
        for name in names:
            survived[name] += cells[name]["survived"]
    total = len(rows)
    rows.append(["survived", *(f"{survived[name]} of {total}" for name in names)])
    return table(["fault", *(COMPETITORS[name].label for name in names)], rows)


def _table_of_deaths(result: Result) -> str:
    rows = []
    for row in result["rows"]:
        deaths = ", ".join(
            f"{step}{' (in a save)' if in_save else ''}"
            for step, in_save in row["deaths"]
        )
        starts = ", ".join(map(str, row["starts"]))
        same = "identical" if row["survived"] else "**no**: other bits"
        rows.append([row["label"], deaths, starts, same])
    header = ["saved with", "killed from step", "went on from step", "end"]
    return table(header, rows)


def _table_of_mistakes(result: Result) -> str:
    rows = []
    for row in result["rows"]:
        says = row["says"]
        if row["error"] is None:
            text = "**no error**"
        else:
            text = f"{row['error']}: {_short(says)}".replace("|", "\\|")
        rows.append([row["label"], text])
    raised = sum(row["error"] is not None for row in result["rows"])
    rows.append(["raise", f"{raised} of {len(result['rows'])}"])
    lines = [["mistake", "error"], ["---", "---"], *rows]
    # Not aligned: the longest error would be the width of all.
    return "\n".join(f"| {label} | {text} |" for label, text in lines)


def _short(text: str, width: int = 200) -> str:
    """The beginning of a text, cut between words."""
    if len(text) <= width:
        return text
    return text[:width].rpartition(" ")[0] + " ..."
