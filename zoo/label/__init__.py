"""``zoo label``: the emotion of one clip or line, or of a folder or table of them, by any trained system of the zoo.

The system runs as in ``zoo predict``: its own input processing, its own `predict`; only the samples are the user's.
Beside each label stands what was used. A part of a sample was used if the system's input changes without it: every
sample is also prepared without its words, its picture, its sound, each description and its earlier turns, and the
tensors are compared (of a system whose batches hold none, the answers). So no system has to say what it reads, and a
clip that cannot be decoded, or a turn for which the prompt had no room, is not called used. A clip of which only a part
could be decoded is called damaged. A sample of which nothing was used gets no label.

With ``--out`` the labels of an earlier, perhaps interrupted, command are kept and the others are added. With
``--selector`` another system first decides whether the descriptions are used.
"""
