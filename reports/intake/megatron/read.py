"""A file of Megatron-LM's arguments as a configuration that was taken in."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reports.intake.base import Taken
from reports.intake.megatron.layout import layout_of
from reports.intake.megatron.model import model_of
from reports.intake.megatron.options import by_flag
from reports.intake.megatron.settings import LOGGED, Settings, from_log, from_words
from reports.intake.megatron.stages import with_usual_split
from reports.intake.megatron.training import recipe_of, workload_of
from reports.intake.megatron.unread import list_unread
from reports.intake.shell import Script, follow
from reports.intake.shell_expand import expand, unset
from reports.intake.shell_words import Word, tokens
from suite.parse import SpecError, require, shown

#: characters of the largest file that is read
LARGEST = 2**22
#: formats that DeepSpeed's engine does not take here, and torch's ZeRO-1 does
NOT_ON_DEEPSPEED = ("fp8", "fp16-mixed")
#: what launchers call the machines and the devices of one
NODES = ("--nnodes", "--nodes", "-N", "--num-nodes", "--num_nodes")
DEVICES = ("--nproc_per_node", "--nproc-per-node", "--ntasks-per-node", "--gpus-per-node", "--num-gpus", "--num_gpus")
#: options of launchers that say nothing of a case
LAUNCHER = (
    "--node_rank", "--node-rank", "--master_addr", "--master-addr", "--master_port", "--master-port", "--rdzv",
    "--standalone", "--max_restarts", "--max-restarts", "--tee", "--redirects", "--log_dir", "--log-dir", "--role",
)  # fmt: skip
_BATCH_SCRIPT = re.compile(r"^#SBATCH\s+(\S+?)(?:[ \t=]+)(\S+)", flags=re.MULTILINE)


def is_megatron(text: str) -> bool:
    """Is this a file of Megatron-LM's arguments? Several of its own options, or lines of its log."""
    own = {"--num-layers", "--hidden-size", "--num-attention-heads", "--tensor-model-parallel-size", "--seq-length"}
    words = set(re.findall(r"--[a-z][a-z0-9-]+", text))
    names = {name for name, _ in LOGGED.findall(text)}
    return len(own & words) >= 3 or {"num_layers", "hidden_size", "num_attention_heads"} <= names


def read_megatron(path: str) -> Taken:
    """The file at `path`, or standard input for -. SpecError where it cannot be read, or holds no such arguments."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") if path != "-" else sys.stdin as file:
            text = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"FILE: {shown(path)} cannot be read ({reason}); give Megatron-LM's arguments") from None
    name = "standard input" if path == "-" else Path(path).name
    require(len(text) <= LARGEST, f"FILE: {name} is longer than {LARGEST} characters; give the arguments alone")
    return taken_from(text, name)


def taken_from(text: str, name: str) -> Taken:
    """The arguments in a text called `name`. SpecError where there are none, or they make no case."""
    try:
        return _taken(*_settings(text), text)
    except SpecError as error:
        raise SpecError(f"{name}: {error}") from None
    except RecursionError:
        raise SpecError(f"{name}: nested too deeply to be followed; give the arguments alone") from None


def _settings(text: str) -> tuple[Settings, int | None, int | None]:
    """The settings, machines, and devices of a machine."""
    if LOGGED.search(text) and len(LOGGED.findall(text)) > 9:
        return from_log(text), None, None
    script = follow(text)
    words = _command(script)
    require(bool(words), "no command or list of Megatron-LM's options in it; give a script that has them")
    program = next((place for place, word in enumerate(words) if word.endswith(".py")), -1)
    own = words[program + 1 :]  # those before it are the launcher's
    settings = from_words(own if _options(own) else words)
    settings.assumed += script.notes
    named = dict(_BATCH_SCRIPT.findall(text))
    return settings, _count(words, NODES, named), _count(words, DEVICES, named)


def _command(script: Script) -> list[str]:
    """The words of the command that has most of Megatron-LM's options; else of lines that are lists of them; else of
    the variables that hold them."""
    commands = [_unfolded(command, script) for command in script.commands]
    best = max((command for command in commands if not command[0].startswith("--")), key=_options, default=[])
    if _options(best):
        return best
    lines = [word for command in commands for word in command]
    if _options(lines):
        return lines
    return [word for values in script.variables.values() for word in _unfolded(values, script) if _options(values)]


def _unfolded(words: list[str], script: Script) -> list[str]:
    """The words, a command in quotes as its own ones."""
    found: list[str] = []
    for word in words:
        if " --" in word or (word.startswith("--") and " " in word):
            inner = (expand(token, script.variables) for token in tokens(word) if isinstance(token, Word))
            found += [part for parts in inner for part in parts]
        else:
            found.append(word)
    return found


def _options(words: Iterable[str]) -> int:
    """How many of the words are Megatron-LM's options; those in one variable count too."""
    return sum(part.partition("=")[0] in by_flag() for word in words for part in word.split())


def _count(words: list[str], flags: tuple[str, ...], named: dict[str, str]) -> int | None:
    """A launcher's number, of the command or of the script's #SBATCH lines; None where there is none or a variable."""
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in flags:
            value = value if equals else words[place + 1] if place + 1 < len(words) else ""
            if unset(value) is None and value.isdigit() and int(value):
                return int(value)
    return next((int(named[flag]) for flag in flags if named.get(flag, "").isdigit() and int(named[flag])), None)


def _divided(layout: dict[str, Any]) -> int:
    """Ranks that share one replica, or an expert-parallel group of them."""
    return int(layout["tp"] * layout["cp"] * layout["pp"] * layout.get("ep", 1))


def _taken(settings: Settings, nodes: int | None, devices: int | None, text: str) -> Taken:
    """The case's parts, and what of the settings is in none."""
    logged = settings.whole("world_size") if settings.says("world_size") else None
    ranks = logged if logged is not None else (nodes or 1) * devices if devices is not None else None
    settings.unknown = [given for given in settings.unknown if not given.flag.startswith((*NODES, *DEVICES, *LAUNCHER))]
    model = model_of(settings)
    layout = layout_of(settings, ranks)
    workload = workload_of(settings, layout)
    if layout.get("zero") == 1 and workload["precision"] in NOT_ON_DEEPSPEED:
        layout["engine"] = "torch"
    layout = with_usual_split(model, layout, workload)
    batch = settings.number("global_batch_size")
    recipe = recipe_of(settings, int(batch) if batch else None)
    case = {"model": model, "layout": layout, "workload": workload, "recipe": recipe}
    if devices is not None:
        case["cluster"] = {"nodes": nodes or 1, "per_node": devices}
    elif logged is not None:
        layout.setdefault("dp", max(1, logged // _divided(layout)))
        settings.assumed.append(f"cluster: one machine for all {logged} ranks; give --nodes")
    else:
        settings.assumed.append(
            "layout.dp: 1, for nothing says how many ranks there are; give --dp, or --nodes and --per-node"
        )
    settings.assumed.append("cluster.device: the arguments name none; give --device")
    unmodelled, ignored = list_unread(settings)
    return Taken(case, unmodelled, tuple(settings.assumed), ignored, int(batch) if batch else None)
