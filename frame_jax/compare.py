"""Puts the effects of orders in several finished runs on one page.

`python -m frame_jax.compare RUN... --out FOLDER` prints one table and writes FOLDER/index.html, its
figures as PNG and FOLDER/compare.json, which can take the place of its runs.
"""

import argparse

from frame_jax.config.paths import user_path
from frame_jax.errors import UserError
from frame_jax.report.compared_runs import FILE, read_compared_runs, terminal_table
from frame_jax.run.directory import require_writable
from frame_jax.run.program_exit import run_command, run_main
from frame_jax.run.progress import wide_console


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = argparse.ArgumentParser(
        prog="python -m frame_jax.compare",
        description="Show the effects of orders in several finished runs on one page: by size of "
        "the model, by tokens a parameter, by score.",
    )
    runs = f"run directories with their reports written, or a {FILE} that this program wrote"
    options.add_argument("runs", nargs="+", metavar="RUN", help=runs)
    options.add_argument("--out", required=True, help="new folder, or one to be written again")
    return options


def compare_runs(options: argparse.Namespace) -> None:
    """Prints the table and writes the page.

    Raises:
        UserError: if a run is not finished or given twice, or `out` holds something else.
    """
    compared, out = read_compared_runs(options.runs), user_path(options.out)
    if out.exists() and not (out / FILE).exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"--out {out} holds something else: name a new folder")
    require_writable(out, "--out")
    wide_console().print(terminal_table(compared.runs))
    from frame_jax.report.compare_page import write_comparison  # a second, after the table

    write_comparison(compared, out)
    print(f"page: {options.out}/index.html")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for bad input."""
    return run_command(parser(), compare_runs, arguments)


if __name__ == "__main__":
    run_main(main)
