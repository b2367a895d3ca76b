"""Make what a run needs before it can begin (``zoo prepare``).

A small backbone, the sitcom's clips, a leak report, measured voices, texts by other models.
"""
