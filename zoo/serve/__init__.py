"""``zoo serve``: a local page that labels a clip or a conversation and shows what each part said.

`answers` asks the systems, one question at a time; `app` speaks HTTP; `page/` is what a browser gets. The server is
aiohttp, which Lightning installs anyway; the page is a few hundred lines of ours, because Gradio and its like load
fonts and scripts from elsewhere, and draw neither a timeline of utterances nor boxes over a film.
"""
