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
{before}_zoo_files() {{
    local IFS=$'\\n'  # a name may hold spaces
    COMPREPLY+=($(compgen -f -- "$1"))
}}
_zoo() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    [ "$word" = "=" ] && word=""  # bash parts --model=NAME into three words
    [ "$before" = "=" ] && before="${{COMP_WORDS[COMP_CWORD-2]}}"
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{verbs}" -- "$word"))
        return
    fi
    case "$before" in
        --model) COMPREPLY=($(compgen -W "{models}" -- "$word")); return ;;
        --data) COMPREPLY=($(compgen -W "{corpora}" -- "$word")); return ;;
        --ckpt_path) COMPREPLY=($(compgen -W "best last {published}" -- "$word")); _zoo_files "$word"; return ;;
{second}    esac
    case "$word" in
        -*) COMPREPLY=($(compgen -W "{options}" -- "$word")) ;;
        *) _zoo_files "$word" ;;
    esac
}}
complete -o filenames -F _zoo zoo lightning
"""
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def main(args: list[str], verbs: Mapping[str, str]) -> None:
    """Print the script of a shell.

    Args:
        verbs: verb -> its help.

    Raises:
        ValueError: another shell.
    """
    if args not in (["bash"], ["zsh"]):
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
        f'        {verb}) COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$word")); return ;;\n'
        for verb, words in {**SECOND, "checkpoints": VERBS}.items()
    )
    shipped = " ".join(name for name, entry in index().items() if entry["source"] == "shipped")
    return SCRIPT.format(
        name=shell,
        before=ZSH if shell == "zsh" else "",
        verbs=" ".join(verbs),
        models=" ".join(sorted(named(SECTIONS["model"]))),
        corpora=" ".join(sorted(named(SECTIONS["data"]))),
        published=shipped,
        second=second,
        options=" ".join(OPTIONS),
    )
