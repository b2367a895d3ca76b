"""``zoo bench --config configs/bench/sitcom.yaml``: rows side by side on one corpus, and a report to trust.

`plan` is what a benchmark file may say, `run` does the jobs and can be killed at any time, `collect` reads what they
left behind, `statistics` compares, `report` writes report.html and report.md. No module here knows a system: a row is a
config or a checkpoint, and everything is done by the commands a user would give.
"""
