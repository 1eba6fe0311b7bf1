"""The table of tasks."""

from __future__ import annotations

from suite.models.base import ModelSpec, TaskKind
from suite.tasks.base import Task
from suite.tasks.denoising import DENOISING
from suite.tasks.masked import MASKED
from suite.tasks.next_token import NEXT_TOKEN
from suite.tasks.spans import SPANS

TASKS: dict[TaskKind, Task] = {
    TaskKind.NEXT_TOKEN: NEXT_TOKEN,
    TaskKind.MASKED: MASKED,
    TaskKind.SPANS: SPANS,
    TaskKind.DENOISING: DENOISING,
}


def task_of(spec: ModelSpec) -> Task:
    """What the model is trained to do."""
    return TASKS[spec.task]
