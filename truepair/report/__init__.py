"""Pages to look at: static, self-contained HTML about runs. Nothing in them asks anything of a network."""

from truepair.report.run import run_report as run_report
