"""The commands of ``mixaug``, one module each: ``main(arguments)`` runs it and gives the exit code.

:mod:`mixaug.cli` chooses among them; ``tools/`` of a checkout has a script for each over the same function. The modules
import what they need when they run, so that ``mixaug --help`` waits for nothing.
"""

#: Names of the commands in the order of the help page; each is a module of this package.
COMMANDS = ("train", "benchmark", "search", "leaderboard", "evaluate", "gallery", "mixer", "policies", "completion")
