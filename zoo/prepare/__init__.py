"""``zoo prepare``: what a run needs before it can begin: a small backbone, the sitcom's clips, a leak report, measured
voices, texts by other models."""
