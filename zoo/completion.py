"""``zoo completion bash | zsh``: a script for the shell that completes verbs, files and published names.

It is made once and needs no start of Python for a completion: ``source <(zoo completion bash)``, or into the shell's
own start-up file. Options of a system are many and change with it; ``zoo fit --model.help NAME`` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SECOND: dict[str, Sequence[str]] = {  # words after a verb, beside those of checkpoints
    "data": ("show",),
    "rollouts": ("serve",),
    "completion": ("bash", "zsh"),
}
OPTIONS = (
    *("--config", "--ckpt_path", "--model", "--model.llm", "--model.help", "--data", "--data.root", "--data.help"),
    *("--trainer.max_epochs", "--trainer.max_steps", "--trainer.devices", "--trainer.precision"),
    *("--trainer.default_root_dir", "--trainer.fast_dev_run", "--seed_everything", "--print_config", "--help"),
)
SCRIPT = """\
# completion of zoo and lightning; made by zoo completion {name}
_zoo_offers() {{  # $1 place of the word, $2 what it begins with, $3 the word before: sets offers, and files if they fit
    offers="" files=""
    if [ "$1" -eq 1 ]; then
        offers="{verbs}"
        return
    fi
    case "$3" in
        --model) offers="{models}"; return ;;
        --data) offers="{corpora}"; return ;;
        --ckpt_path) offers="best last {published}"; files=1; return ;;
{second}    esac
    case "$2" in
        -*) offers="{options}" ;;
        *) files=1 ;;
    esac
}}
{function}"""
SHELLS = {
    "bash": """\
_zoo() {
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" offers files
    [ "$word" = "=" ] && word=""  # bash parts --model=NAME into three words
    [ "$before" = "=" ] && before="${COMP_WORDS[COMP_CWORD-2]}"
    _zoo_offers "$COMP_CWORD" "$word" "$before"
    COMPREPLY=($(compgen -W "$offers" -- "$word"))
    [ -n "$files" ] || return 0
    local IFS=$'\\n'  # a name may hold spaces
    COMPREPLY+=($(compgen -f -- "$word"))
}
complete -o filenames -F _zoo zoo lightning
""",
    # compinit only where the start-up file has not called it: a second call forgets the completions of other commands
    "zsh": """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_zoo() {
    local before="$words[CURRENT-1]" offers files
    local -i failed=1
    compset -P '--*=' && before="${IPREFIX%=}"
    _zoo_offers $((CURRENT - 1)) "$PREFIX" "$before"
    [[ -n "$offers" ]] && compadd -- ${=offers} && failed=0
    [[ -n "$files" ]] && _files && failed=0
    return failed
}
compdef _zoo zoo lightning
""",
}


def main(args: list[str], verbs: Mapping[str, str]) -> None:
    """Print the script of a shell.

    Args:
        verbs: verb -> its help.

    Raises:
        ValueError: another shell.
    """
    if len(args) != 1 or args[0] not in SHELLS:
        raise ValueError(
            f"zoo completion {' '.join(args)}: expected zoo completion bash or zoo completion zsh; then "
            "source <(zoo completion bash)"
        )
    print(script(args[0], verbs), end="")


def script(shell: str, verbs: Mapping[str, str]) -> str:
    """Return the script; see `main`."""
    from zoo.arguments import SECTIONS, know_short_names, named
    from zoo.checkpoints.commands import VERBS
    from zoo.checkpoints.listing import index

    know_short_names()

    second = "".join(
        f'        {verb}) offers="{" ".join(words)}"; return ;;\n'
        for verb, words in {**SECOND, "checkpoints": VERBS}.items()
    )
    shipped = " ".join(name for name, entry in index().items() if entry["source"] == "shipped")
    return SCRIPT.format(
        name=shell,
        verbs=" ".join(verbs),
        models=" ".join(sorted(named(SECTIONS["model"]))),
        corpora=" ".join(sorted(named(SECTIONS["data"]))),
        published=shipped,
        second=second,
        options=" ".join(OPTIONS),
        function=SHELLS[shell],
    )
