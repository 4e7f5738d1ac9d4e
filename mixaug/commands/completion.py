"""Complete the command line in a shell: eval "$(mixaug completion bash)"

Put that line into ~/.bashrc, for zsh `eval "$(mixaug completion zsh)"` into ~/.zshrc, for fish
`mixaug completion fish | source` into ~/.config/fish/config.fish. Completed are commands, options, and of train,
benchmark and search also groups, their choices and settings: policy=cut<TAB>, optimizer.<TAB>, with --config-dir your
own too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence

from mixaug.commands import COMMANDS
from mixaug.commands.arguments import OWN, STATUSES

__all__ = ["candidates", "main", "parser"]

#: Arguments that some command has beside Hydra overrides.
EVERY_OWN = {argument for arguments in OWN.values() for argument in arguments}
#: Options of Hydra's command line that `mixaug train` takes.
TRAIN_OPTIONS = ("--help", "--hydra-help", "--multirun", "--config-dir", "--cfg", "--package", "--info")

#: Values of those that take one of a few; a folder is for the shell to complete.
VALUES = {"--cfg": ("job", "hydra", "all"), "--config-dir": (), "--package": ()}

BASH = r"""_mixaug() {
    local line=${COMP_LINE:0:COMP_POINT} IFS=$'\n'
    local word=${line##* } breaks=${COMP_WORDBREAKS//[^=:]/}
    COMPREPLY=($(mixaug completion query "$line" 2>/dev/null))
    # Bash takes policy=cut for several words, and replaces the last of them alone.
    [[ -n $breaks ]] && COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*[$breaks]}"}"}")
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace
}
complete -o default -F _mixaug mixaug
"""

ZSH = r"""_mixaug() {
    local -a found
    found=("${(@f)$(mixaug completion query "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    compadd -Q -S '' -- ${(M)found:#*[=./]}
    compadd -Q -- ${found:#*[=./]} || _files
}
compdef _mixaug mixaug
"""

FISH = """complete -c mixaug -a '(mixaug completion query (commandline -cp) 2>/dev/null)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        "mixaug completion",
        description=__doc__,
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("shell", choices=[*SCRIPTS, "query"], help="query LINE is what the shells themselves call")
    made.add_argument("line", nargs="?", default="", help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str]) -> int:
    """Print the shell's script, or what may follow a line."""
    chosen = parser().parse_args(list(arguments))
    if chosen.shell == "query":
        for candidate in candidates(chosen.line):
            print(candidate)
    else:
        print(SCRIPTS[chosen.shell], end="")
    return 0


def candidates(line: str) -> list[str]:
    """What the last word of a command line may become, sorted; nothing where a shell should complete files.

    Args:
        line: from the program's name to the cursor.
    """
    words = line.split()[1:]
    word = "" if line[-1:].isspace() or not words else words.pop()
    if not words:
        found = [*COMMANDS, "--help", "--version"]
    elif words[0] not in COMMANDS:
        found = []
    elif words[0] in OWN:
        found = _of_hydra(words[0], words[1:], word)
    else:
        found = _of_parser(words[0], words[1:], word)
    return sorted({candidate for candidate in found if candidate.startswith(word)})


def _of_parser(command: str, words: Sequence[str], word: str) -> list[str]:
    """Options of a command, the choices of the option before the word, or those of its arguments."""
    actions = importlib.import_module(f"mixaug.commands.{command}").parser()._actions
    before = next((action for action in actions if words and words[-1] in action.option_strings), None)
    if before is not None and before.nargs != 0:
        return [str(choice) for choice in before.choices or ()]
    if word.startswith("-"):
        return [option for action in actions for option in action.option_strings if option.startswith("--")]
    if command == "policies" and words[:1] == ["describe"]:
        from mixaug.engine.config import list_choices

        return list_choices("policy")
    first = [action for action in actions if not action.option_strings and action.choices]
    return [str(choice) for action in first for choice in action.choices or ()] if not words else []


def _of_hydra(command: str, words: Sequence[str], word: str) -> list[str]:
    """Groups, choices and settings, as Hydra completes them."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--config-dir", "-cd")
    if words and words[-1] in VALUES:
        return list(VALUES[words[-1]])
    known, rest = reader.parse_known_args(list(words))
    if word.startswith("-"):
        return list(TRAIN_OPTIONS) if command == "train" else ["--help", "--config-dir"]
    # The values before the last comma are given: what completes the last one is asked for alone.
    key, equals, value = word.partition("=")
    given, comma, last = value.rpartition(",")
    asked = f"{key}{equals}{last}"
    # One of several values is enough to know the settings.
    overrides = [
        _one_value(other) for other in rest if not other.startswith("-") and other.split("=")[0] not in EVERY_OWN
    ]
    found = [f"{argument}=" for argument in OWN[command] if argument.startswith(word.rstrip("="))]
    of_search = [other for other in overrides if _is_of_search(other)]
    config = "train"
    if command == "search" and (_is_of_search(word) or (word and "search".startswith(word))):
        # What is tried is composed apart from what is trained.
        config = "search"
        is_named = asked.startswith("search=") or any(other.startswith("search=") for other in of_search)
        overrides = of_search if is_named else ["search=images", *of_search]
    elif command == "search":
        overrides = [other for other in overrides if other not in of_search]
    for candidate in _queried(config, overrides, known.config_dir, asked):
        start, _, end = candidate.partition("=")
        folder = "/" if end and os.path.isdir(end) else ""
        found.append(f"{start}={given}{comma}{end}" if comma else candidate + folder)
    return found


def _is_of_search(override: str) -> bool:
    """Whether an override is of the space of a search."""
    return override.lstrip("+~").split("=", 1)[0].split(".", 1)[0] == "search"


def _one_value(override: str) -> str:
    """An override with the last of its values, where it has several: none, the first of many grids, has no settings."""
    key, equals, value = override.partition("=")
    return f"{key}{equals}{value.split(',')[-1] if value[:1] not in tuple('[{(') else value}"


def _queried(config: str, overrides: Sequence[str], config_dir: str | None, word: str) -> list[str]:
    """What Hydra's own completion says; nothing where the line cannot be composed, for a shell shows no errors."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    from mixaug.engine.config import config_folder, with_config_dir

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            line = " ".join([*with_config_dir(overrides, config_dir), word])
            with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
                plugin = DefaultCompletionPlugin(GlobalHydra.instance().config_loader())
                return list(plugin._query(config, line + ("" if word else " ")))
        except Exception as error:
            print(f"mixaug: {error}", file=sys.stderr)
            return []
