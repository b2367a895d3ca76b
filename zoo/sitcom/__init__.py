"""The generator of the embedded corpus: a sitcom whose every probability is known.

`settings` says what can be chosen and what a dialogue is, `phrases` has the words, `odds` every probability, `script`
writes the dialogues, `posteriors` computes the best reachable answers exactly. `cues` holds the odds of what is a
number; `faces` draws it and `voices` speaks it. `clips` encodes pictures and sounds, `truth` and `questions` annotate
them, and `release` writes it all down in the layout of the MELD release, which `zoo.data.Synthetic` reads.

Read the principle at the top of `script` before comparing systems that select or drop modalities.
"""
