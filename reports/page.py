"""One self-contained page for a run: no network, no script needed, nothing of a user's text taken for markup."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from reports import wording
from reports.factors import factor_rows
from reports.figures import charts
from reports.palette import COMPONENTS, css_variables
from reports.peers import peer_cases, tool_errors
from reports.peers_text import NOTE
from reports.serving_summary import serving_summary
from reports.serving_view import served_view
from reports.speed import WARMUP_STEPS
from reports.summary import ERROR_BAND, RunComparison, variant
from reports.svg import Chart
from reports.text import difference_text, plain_lines
from reports.time_view import legend_of, time_rows
from reports.view import case_view, flatten
from suite import units
from suite.record import Quantity
from suite.stats import NOISY_SPREAD

TEMPLATES = Path(__file__).parent / "templates"


def render_page(comparison: RunComparison, drawings: tuple[Chart, ...] | None = None) -> str:
    """The page as HTML. `drawings` are the run's figures, drawn here where they are not given."""
    run = comparison.run
    figures = charts(comparison) if drawings is None else drawings
    views = [case_view(case, place, run.environment) for place, case in enumerate(comparison.opened)]
    times = time_rows([case for case in comparison.opened if not case.serving])
    return render(
        "page.html.j2",
        run=run,
        comparison=comparison,
        cases=views,
        trained=[view for view in views if not view.comparison.serving],
        served=[served_view(view, view.comparison.serving) for view in views if view.comparison.serving],
        serving=serving_summary(comparison),
        quantities=Quantity,
        factors=factor_rows(comparison.cases),
        figures=figures,
        times=times,
        time_legend=legend_of(times),
        environment=list(flatten(run.environment)),
        devices=sorted({case.case.cluster.device for case in comparison.cases}),
        components=COMPONENTS,
        peers=peer_cases(comparison),
        tools=tool_errors(comparison, peer_cases(comparison)),
    )


def render(template: str, **context: object) -> str:
    """A template of a whole page with what every page has: colours, style, and the one script it may run."""
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template(template)
        .render(
            **context,
            light=Markup(css_variables(dark=False)),
            dark=Markup(css_variables(dark=True)),
            style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=_content_hash(script),
        )
    )


@cache
def _environment() -> jinja2.Environment:
    """The templates' environment: everything is escaped, and control characters never reach the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize,
    )
    environment.filters.update(
        bytes=units.bytes_text,
        seconds=units.seconds_text,
        percent=units.percent_text,
        count=units.count_text,
        number=units.number_text,
        difference=difference_text,
        kind=lambda block: type(block).__name__,
        svg=lambda chart: Markup(chart.svg),  # from our XML writer: text escaped
    )
    constants: dict[str, object] = {
        "ERROR_BAND": ERROR_BAND,
        "NOISY_SPREAD": NOISY_SPREAD,
        "WARMUP_STEPS": WARMUP_STEPS,
        "PEERS_NOTE": NOTE,
    }
    environment.globals.update(constants, wording=wording, variant=variant)
    return environment


def _finalize(value: Any) -> Any:
    """Clean every text on its way out; markup is our own and stays."""
    return plain_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _content_hash(script: str) -> str:
    """The script's name in the page's content-security policy: only this very text may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
