"""The command `appliance`: compose and check a recipe, then run its task.

appliance                        list the recipes
appliance recipe=NAME key=value  serve it, or plan it with task=plan
appliance help NAME              explain a group of keys, a key or a recipe
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from appliance import __version__
from appliance.argument_memory import overwrite_secrets
from appliance.config.errors import USAGE_ERROR, ConfigurationError, suggestion
from appliance.config.masking import redacted
from appliance.config.words import check_words

COMPLETION = re.compile(r"(install|uninstall|query)=(bash|fish|zsh)")
INTERRUPTED = 128 + 2  # exit code of a command that Ctrl-C ended


class Arguments(argparse.ArgumentParser):
    """The flags of Hydra that make sense here; what is wrong becomes one line."""

    def __init__(self) -> None:
        super().__init__(prog="appliance", add_help=False, allow_abbrev=False)
        self.add_argument("overrides", nargs="*", help="group=option or key=value")
        self.add_argument("--help", "-h", action="store_true", help="what there is")
        self.add_argument("--version", action="store_true", help="version of the appliance")
        self.add_argument(
            "--config-dir",
            "-cd",
            action="append",
            default=[],
            help="folder with recipes of your own",
        )
        self.add_argument(
            "--cfg", "-c", choices=["job", "hydra", "all"], help="print the composed configuration"
        )
        self.add_argument(
            "--resolve", action="store_true", help="with --cfg: resolve interpolations"
        )
        self.add_argument("--package", "-p", help="with --cfg: only this part")
        self.add_argument(
            "--info",
            "-i",
            nargs="?",
            const="all",
            choices=["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"],
            help="print what Hydra knows, e.g. searchpath",
        )
        self.add_argument(
            "--shell-completion", "-sc", action="store_true", help="install=bash, fish or zsh"
        )

    @property
    def flags(self) -> dict[str, tuple[str, ...]]:
        """Every flag by its long name, with what may follow it."""
        return {
            next(name for name in action.option_strings if name.startswith("--")): tuple(
                action.choices or ()
            )
            for action in self._actions
            if action.option_strings
        }

    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].split(" ")[0]
        flags = [flag for action in self._actions for flag in action.option_strings]
        hint = f"{suggestion(unknown, flags)}; keys are set as key=value" if unknown else ""
        raise ConfigurationError(f"{message}{hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 2, with one line on stderr, for what the user can correct."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if argv is None:
        overwrite_secrets()
    try:
        return run(arguments)
    except ConfigurationError as error:
        from appliance.log_lines import complain

        complain(redacted(str(error), arguments), arguments)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output is gone: `appliance --help | head`
        sys.stderr.close()
        return 1
    except Exception as error:  # our bug: a traceback, but of secrets nothing
        from appliance.log_lines import complain

        hide = partial(redacted, arguments=arguments)
        complain("a fault of its own", arguments, error, hide)
        return 1


def run(argv: list[str]) -> int:
    helping = argv[:1] == ["help"] or bool({"--help", "-h"} & set(argv))
    if not helping:
        check_words(argv, recipe_names)
    parser = Arguments()
    arguments = parser.parse_intermixed_args(argv[argv[:1] == ["help"] :])
    if arguments.version:
        print(__version__)
        return 0

    from appliance.config.folders import user_folders
    from appliance.config.recipes import listing

    folders = user_folders(arguments.config_dir)
    check_flags(arguments)
    if helping:
        print(manual(arguments.overrides, folders))
    elif arguments.shell_completion and arguments.overrides[0].startswith("query="):
        from appliance.config.completion import offered

        print(
            "\n".join(offered(os.environ.get("COMP_LINE", ""), arguments.config_dir, parser.flags))
        )
    elif arguments.shell_completion or arguments.info or arguments.cfg in ("hydra", "all"):
        return ask_hydra(arguments)
    elif arguments.cfg:
        print(configuration(arguments, folders), end="")
    elif not arguments.overrides:
        print(listing(folders))
    else:
        from appliance import tasks
        from appliance.recipe import compose_recipe

        return tasks.run(compose_recipe(arguments.overrides, arguments.config_dir))
    return 0


def recipe_names() -> Collection[str]:
    """Recipes that anybody may mean who says a word, the user's by the environment included."""
    from appliance.config.folders import user_folders
    from appliance.config.recipes import recipe_files

    return recipe_files(user_folders([])).keys()


def check_flags(arguments: argparse.Namespace) -> None:
    """Raise ConfigurationError for flags that would do nothing, or not what was meant."""
    if arguments.package and not arguments.cfg:
        raise ConfigurationError(
            "--package goes with --cfg; a TCP port is server.port=8000, a wheel is model.path=pypi://…"
        )
    if arguments.resolve and not (arguments.cfg or arguments.help):
        raise ConfigurationError("--resolve goes with --cfg")
    said = arguments.overrides
    if arguments.shell_completion and not (len(said) == 1 and COMPLETION.fullmatch(said[0])):
        raise ConfigurationError(
            '-sc takes install=bash or install=fish: type eval "$(appliance -sc install=bash)"'
        )


def manual(words: Sequence[str], folders: Sequence[Path]) -> str:
    """What `--help` or `help` says: of the words without a value, else of everything."""
    from appliance.config.compose import compose_node
    from appliance.config.manual import explain, page

    topics = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    if topics:
        return explain(topics, overrides, folders)
    compose_node(overrides, folders)  # says what is wrong with them
    return page(folders)


def configuration(arguments: argparse.Namespace, folders: Sequence[Path]) -> str:
    """The composed recipe, or a part of it, as YAML."""
    from appliance.config.compose import as_package, as_recipe, compose_node

    node = compose_node(arguments.overrides, folders)
    if arguments.package:
        return as_package(node, arguments.package, arguments.resolve)
    return as_recipe(node, arguments.resolve)


def ask_hydra(arguments: argparse.Namespace) -> int:
    """Let Hydra answer flags about its composition: information, and scripts for completion."""
    import hydra

    from appliance.config.compose import (
        VERSION_BASE,
        compose_node,
        hydras_overrides,
        register_schema,
    )
    from appliance.config.folders import PRIMARY, data_folder, searching, user_folders

    folders = user_folders(arguments.config_dir)
    overrides = arguments.overrides
    if not arguments.shell_completion:
        node = compose_node(overrides, folders)  # says what is wrong in our words
        overrides = hydras_overrides(node, overrides, arguments.resolve)
    flags = {
        "--resolve": arguments.resolve,
        "--shell-completion": arguments.shell_completion,
        f"--cfg={arguments.cfg}": arguments.cfg,
        f"--package={arguments.package}": arguments.package,
        f"--info={arguments.info}": arguments.info,
    }
    sys.argv[1:] = [*(flag for flag, given in flags.items() if given), *overrides]
    register_schema()
    with searching(folders):
        hydra.main(
            version_base=VERSION_BASE, config_path=str(data_folder("conf")), config_name=PRIMARY
        )(refuse)()
    return 0


def refuse(_: object) -> None:
    raise AssertionError("Hydra was asked to run a task")
