"""All pages of evidence."""

from benchmarks.evidence import boosting, least_squares

PAGES = (boosting.PAGE, least_squares.PAGE)
