"""``keystone report``: pages of finished runs, each one file that opens without a network."""

from __future__ import annotations

from pathlib import Path

import click

from keystone.errors import UsageError


@click.command("report", context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("folders", nargs=-1, metavar="DIR [DIR2 ...]", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE.html", help="The page to write; an earlier one is replaced."
)
@click.option("--qoe", is_flag=True, help="Instead of latencies: quality of experience, from the lake of one run, bench or replay.")
def report_command(folders: tuple[Path, ...], out: Path, *, qoe: bool) -> None:
    """Show the latencies of finished bench runs (the folders of their --out), in one HTML file; with several, also what changed between them."""
    from keystone.report.making import make_latency_page, make_qoe_page

    if not folders:
        raise UsageError("name the folder of a finished run (bench: its --out)")
    if qoe:
        if len(folders) > 1:
            raise UsageError("--qoe takes one folder")
        make_qoe_page(folders[0], out)
    else:
        make_latency_page(folders, out)
    click.echo(f"report: {out}")
