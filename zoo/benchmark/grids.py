"""Rows that stand for many: a paper's table is the product of a few choices, run at paper size or as a miniature.

    miniature:                                       # what --small replaces; with row of the same name: of that row
      data: {class_path: zoo.data.Synthetic, init_args: {root: runs/sitcom-small}}
      options: {model.llm: tiny-llama-sitcom, trainer.max_epochs: 1}
    rows:
      train:
        what: '{variant}'
        config: [configs/farcer/meld.yaml]
        verb: fit
        grid:
          variant:
            base: {what: Base FARCER}
            lora: {what: Fine-tuned FARCER, config: [configs/farcer/ablations/lora.yaml]}
      test:
        what: '{variant} - {shots}'
        published: 'farcer: {variant} - {shots}'
        checkpoint: run:train.{variant}              # stages are chained by name
        grid:
          variant: {base: {what: Base FARCER}, lora: {what: Fine-tuned FARCER}}
          shots: {shots_3: {what: 3 shot, model.shots: 3}, shots_7: {what: 7 shot, model.shots: 7}}

`train` becomes train.base and train.lora, `test` becomes test.base.shots_3, ... in the order of the axes. A value of an
axis holds options, which are set over those of the row, and three words that are none: `config`, files that are read
after the row's; `what`, which stands for it where a person reads (in `what` and `published`; anywhere else `{AXIS}` is
the value's name); and `miniature`, options that --small puts in place of its own. `{AXIS}` in a value's options names
the value of any axis.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonargparse import Namespace

from zoo.benchmark.plan import Miniature
from zoo.shipped import shipped_config

PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
READ_BY_PEOPLE = ("what", "published")
CORPORA = ("train_data", "data")  # left as they are: a corpus has templates with braces of its own
WORDS = ("what", "config", "miniature")  # of a value of an axis; anything else there is an option


def expand(config: Namespace, small: bool) -> Namespace:
    """Return a parsed benchmark with every grid written out, and with its miniature's replacements if `small`.

    Args:
        config: as the parser of ``zoo bench`` returns it: ``rows`` is name -> Namespace.
        small: of ``--small``.

    Raises:
        ValueError: a grid that means nothing or more than one thing, naming the row; or a file without a miniature.
    """
    config = copy.deepcopy(config)
    if small and config.miniature is None:
        raise ValueError(
            "--small: the benchmark has no section miniature, which says what is replaced; give one with data and "
            "options, or leave --small out"
        )
    rows: dict[str, Namespace] = {}
    replaced: dict[str, None] = {}
    for name, row in config.rows.items():
        for made, filled in _product(name, row):
            if made in rows:
                raise ValueError(f"row {made} stands there twice: as itself, or from two grids; rename one")
            if small:
                replaced |= _shrink(filled, config.miniature)
            files = None if filled.config is None else [shipped_config(file) for file in filled.config]
            rows[made] = Namespace({**vars(filled), "config": files, "grid": None, "miniature": None})
    config.rows = rows
    if small:
        if config.miniature.data is not None:
            config.data = config.miniature.data
        what = ", ".join(["the corpus", *sorted(replaced)])
        config.title = f"Miniature, not paper size: {config.title} (replaced: {what})"
    config.miniature = None
    return config


def _product(name: str, row: Namespace) -> Iterator[tuple[str, Namespace]]:
    """Return the rows that a row stands for, by name; itself if it has no grid."""
    if row.grid is None:
        yield name, row
        return
    axes = {axis: _values(name, axis, setting) for axis, setting in row.grid.items()}
    if not axes:
        raise ValueError(f"row {name}: its grid is empty; give at least one axis, or leave grid out")
    for chosen in itertools.product(*(values.items() for values in axes.values())):
        values = dict(zip(axes, chosen, strict=True))
        made = ".".join([name, *(value for value, _ in chosen)])
        options = _options(name, {f"{axis} {value}": setting for axis, (value, setting) in values.items()})
        overlays = [file for _, setting in chosen for file in setting.get("config", ())]
        if overlays and row.config is None:
            raise ValueError(f"row {name}: its grid has config files, and the row none; they are read after the row's")
        merged = {
            **vars(row),
            "options": {**row.options, **options},
            "config": None if row.config is None else [*row.config, *overlays],
            "miniature": _miniature(row.miniature, [setting for _, setting in chosen]),
            "grid": None,
        }
        names = {axis: value for axis, (value, _) in values.items()}
        words = {axis: str(setting.get("what", value)) for axis, (value, setting) in values.items()}
        filled = {
            key: v if key in CORPORA else _fill(v, words if key in READ_BY_PEOPLE else names, made)
            for key, v in merged.items()
        }
        yield made, Namespace(filled)


def _values(name: str, axis: str, setting: Any) -> dict[str, dict[str, Any]]:
    """Return the values of an axis: name -> what it sets. A list is one of names that set nothing."""
    values = dict.fromkeys(setting, {}) if isinstance(setting, list) else setting
    if not PLACE.fullmatch(f"{{{axis}}}") or not isinstance(values, dict) or not values:
        raise ValueError(
            f"row {name}: grid has the axis {axis!r:.80}: {setting!r:.80}; expected a word of letters, digits and '_', "
            "and NAME: {OPTION: VALUE} for each of its values, or a list of names"
        )
    for value, sets in values.items():
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", value):
            raise ValueError(
                f"row {name}: axis {axis} has a value named {value!r:.80}; expected at most 60 letters, digits, '_' "
                "and '-', since it is part of the row's name; quote a number"
            )
        if not isinstance(sets, dict):
            raise ValueError(f"row {name}: axis {axis}: {value} is {sets!r:.80}; expected {{OPTION: VALUE}}, or {{}}")
        for word, kind, expected in (("config", list, "a list of files"), ("miniature", dict, "{OPTION: VALUE}")):
            if not isinstance(sets.get(word, kind()), kind):
                raise ValueError(f"row {name}: axis {axis}: {value}: {word} is {sets[word]!r:.80}; expected {expected}")
    return values


def _options(name: str, chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the chosen values set together. ValueError for an option that two of them set."""
    options: dict[str, Any] = {}
    setters: dict[str, str] = {}
    for value, sets in chosen.items():
        for option in (key for key in sets if key not in WORDS):
            if option in setters:
                raise ValueError(
                    f"row {name}: both {setters[option]} and {value} of its grid set {option}; an option belongs to "
                    "one axis"
                )
            setters[option], options[option] = value, sets[option]
    return options


def _miniature(row: Namespace | None, chosen: Sequence[Mapping[str, Any]]) -> Namespace | None:
    """Return a row's miniature with what its grid's values put in place of their own options."""
    options = {key: value for setting in chosen for key, value in setting.get("miniature", {}).items()}
    if row is None and not options:
        return row
    empty: dict[str, Any] = {"data": None, "checkpoint": None, "options": {}, "test_options": {}, "alone": False}
    rest = vars(row) if row is not None else empty
    return Namespace({**rest, "options": {**rest["options"], **options}})


def _fill(value: Any, names: Mapping[str, str], row: str) -> Any:
    """Return a value with every ``{AXIS}`` replaced."""
    if isinstance(value, list):
        return [_fill(part, names, row) for part in value]
    if isinstance(value, dict):
        return {key: _fill(part, names, row) for key, part in value.items()}
    if isinstance(value, Namespace):
        return Namespace({k: part if k in CORPORA else _fill(part, names, row) for k, part in vars(value).items()})
    if not isinstance(value, str):
        return value

    def known(place: re.Match[str]) -> str:
        if place[1] not in names:
            raise ValueError(f"row {row}: {value!r:.120} names {place[0]}; its axes are {', '.join(names)}")
        return names[place[1]]

    return PLACE.sub(known, value)


def _shrink(row: Namespace, everywhere: Namespace | Miniature) -> dict[str, None]:
    """Replace what a miniature replaces in a row, its own after the benchmark's; return the options it touched.

    The benchmark's options are those of rows that have a config: a checkpoint of another row is small already. A row
    whose own miniature is ``alone`` takes none of them.
    """
    row.size = "small"
    replaced: dict[str, None] = {}
    alone = row.miniature is not None and row.miniature.alone
    for part in (None if alone else everywhere, row.miniature):
        if part is None:
            continue
        if row.config is not None or part is not everywhere:
            row.options = {**row.options, **part.options}
            replaced |= dict.fromkeys(part.options)
        row.test_options = {**row.test_options, **part.test_options}
        replaced |= dict.fromkeys(part.test_options)
    if row.miniature is not None:
        row.train_data = row.miniature.data or row.train_data
        row.checkpoint = row.miniature.checkpoint or row.checkpoint
    return replaced
