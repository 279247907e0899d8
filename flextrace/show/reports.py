"""Report -> HTML for notebooks: findings first, then a table of buffers and the counts."""

from __future__ import annotations

from html import escape

from flextrace.kernels.simulator.report import Report

from .html import display, table

COUNTS = ("matrix_multiplies", "threadgroup_barriers", "simdgroup_barriers", "shuffles", "reductions", "atomics")


def report_html(report: Report) -> str:
    """What a run did and what the checks found."""
    if report.findings:
        several = "s" if len(report.findings) > 1 else ""
        verdict = f'<b class="bad">{len(report.findings)} finding{several}</b>'
    else:
        verdict = '<b class="good">no findings</b>' if report.checks else '<span class="quiet">not checked</span>'
    found = [
        f'<div class="finding"><b>{escape(finding.kind)}</b> at <code>{escape(finding.place)}</code>: '
        f"{escape(finding.message)}</div>"
        for finding in report.findings
    ]
    head = f'<div class="head">simulated kernel <b>{escape(report.kernel)}</b>: {verdict}</div>'
    return display(head, *found, _buffers(report), _counts(report))


def _buffers(report: Report) -> str:
    def moved(count: int) -> str:
        return f"{count:,}" if report.checks else "-"

    rows = [
        (buffer.name, buffer.space, f"{buffer.size:,}", moved(buffer.read), moved(buffer.written))
        for buffer in report.buffers.values()
    ]
    allocated, read, written = report.threadgroup_allocated, report.threadgroup_read, report.threadgroup_written
    rows.append(("(all of it)", "threadgroup", f"{allocated:,}", moved(read), moved(written)))
    return table(("buffer", "memory", "bytes", "bytes read", "bytes written"), rows, numbers=(2, 3, 4))


def _counts(report: Report) -> str:
    names = [name.replace("_", " ") for name in COUNTS]
    return table(names, [[f"{getattr(report, name):,}" for name in COUNTS]], numbers=range(len(COUNTS)))
