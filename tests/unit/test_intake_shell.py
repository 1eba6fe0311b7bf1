"""Shell scripts are followed as bash would: bash itself says what becomes of the words."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from reports.intake.shell import follow
from reports.intake.shell_expand import unset

pytestmark = pytest.mark.unit

SCRIPTS = {
    "variables": "A=4\nB=\"x $A\"\nC='$A'\nshow $A ${A} \"$B\" $B \"$C\" pre$A\"post\" ${N:-7} \"${N:-a b}\"",
    "arrays": 'L=(\n --a 1 # one\n # --no\n "--b 2"\n)\nL+=(--c "d e")\n'
    'M=("${L[@]}" --z)\nshow ${L[@]} "${M[@]}" "${L[*]}"',
    "lines": "show --a 1 \\\n  --b \\\n 2 # end \\\nshow after",
    "string": 'OPTIONS=" \\\n  --a 1 \\\n  --b $((2 * 4)) \\\n"\nOPTIONS+=" --c"\nshow $OPTIONS',
    "if": 'D=fp8\nif [[ "$D" == "fp8" ]]; then\n E=(--x)\nelif [ 1 -eq 1 ]; then\n E=(--y)\nelse\n E=(--z)\nfi\n'
    'if [ $D = fp16 ] || [[ $D == a && $D == fp8 ]]; then\n show no\nelse\n show "${E[@]}"\nfi\n'
    '[ -z "" ] && show empty\n[ 1 = 2 ] && show no\n[ 1 = 1 ] || show no',
    "nested": 'if [ 1 = 2 ]; then\n if [ 1 = 1 ]; then\n  show no\n fi\nelse\n { show yes; }\nfi\n'
    'export F=3; show "$F" > /dev/null',
    "quotes": "show \"a \\\"b\\\" \\$c\" 'd \"e\"' f\\ g \"\" h#i",
}  # fmt: skip


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize("name", SCRIPTS)
def test_words_are_those_that_bash_makes(name: str) -> None:
    prelude = 'show() { printf \'%s\\n\' "$#" "$@" >&2; }\n'
    ran = subprocess.run(
        ["bash", "-c", prelude + SCRIPTS[name]], capture_output=True, text=True, timeout=20, check=True
    )
    ours = [command[1:] for command in follow(SCRIPTS[name]).commands if command[0] == "show"]
    lines = [line for words in ours for line in (str(len(words)), *words)]
    assert lines == ran.stderr.split("\n")[:-1]


def test_what_a_script_does_not_set_stays_a_mark() -> None:
    script = follow('L=(--a ${NODES} --b $1 --c "$(hostname)")\ncmd ${L[@]} $((8 * GPUS))')
    words = script.commands[0]
    assert [unset(word) for word in words] == [None, None, "NODES", None, "1", None, "$(hostname)", "$((8 * GPUS))"]


def test_what_is_not_followed_is_told() -> None:
    text = "while [ $# -gt 0 ]; do case $1 in --a) A=1;; esac; shift; done\nf() { A=2; }\nsource env.sh\ncmd ${A:-3}"
    script = follow(text)
    assert script.commands[-1] == ["cmd", "3"]
    assert script.notes == ["while: not followed", "function: not followed", "source env.sh: not read"]


@pytest.mark.parametrize("text", ["'", '"', "$(", "${", "L=(", "case", "f(", "<<", "`", ")", "}", "\\", "$(("])
def test_broken_scripts_end(text: str) -> None:
    for script in (text, f"a {text} b\nc", f"{text}\n{text}"):
        follow(script)
