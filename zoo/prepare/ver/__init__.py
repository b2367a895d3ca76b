"""``zoo prepare ver``: reasoning texts for labelled clips, in the way of VER (Emotion-Qwen, Huang et al. 2025, Sec. 4).

Two models explain, from frames, words and the known label, how one can tell; a third merges the two texts; a person
rates what came out from 0 to 5; what is rated 3 or more becomes a conversation to train on.

    zoo prepare ver --data MER2024 --data.root DIR --models A B --merger C --send_to URL --out OUT
    (fill the column "rating" of OUT/ratings.csv)
    zoo prepare ver --collect --out OUT

Differs from the paper: any models, prompts in our own words (the paper prints none), frames instead of video files, one
rating per text instead of twelve analysts (put their mean there; the paper does not say how it joined them).

In OUT lie ``ver.jsonl`` (the texts), ``ratings.csv``, ``left_out.jsonl`` (clips without a text, and why),
``answers.jsonl`` (see `zoo.prepare.answer_store.AnswerStore`), ``settings.json``, and after --collect
``ver_{en,zh}.json`` and ``not_collected.jsonl``.
"""
