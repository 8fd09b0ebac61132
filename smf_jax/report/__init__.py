"""Reports, drawn from the files of runs.

demo.py      all methods beside each other
teach.py     what one command taught
retrofit.py  how a memory healed
figures.py   figures as SVG
page.py      the template of a page; rows of answers
"""

from smf_jax.report.demo import write
from smf_jax.report.figures import COLOURS
from smf_jax.report.retrofit import draw_retrofit
from smf_jax.report.teach import write_teach

__all__ = ["COLOURS", "draw_retrofit", "write", "write_teach"]
