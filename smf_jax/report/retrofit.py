"""The figure of a retrofit."""

from pathlib import Path

from smf_jax.report.figures import draw_healing, svg
from smf_jax.runs.files import HEALING, RETROFIT, read_result, write_text


def draw_retrofit(run_dir: Path) -> Path:
    """Draws the loss and slot usage of a finished retrofit; returns the figure's path.

    Raises:
      ConfigError: The run is not a finished retrofit.
    """
    report = read_result(run_dir / RETROFIT)
    write_text(run_dir / HEALING, svg(draw_healing, report, panels=2))
    return run_dir / HEALING
