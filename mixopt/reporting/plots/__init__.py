"""The pictures of a report, each a `Drawing`: SVG for a page, PNG and PDF for papers."""

from mixopt.reporting.plots.classes import classes as classes
from mixopt.reporting.plots.curves import curves as curves
from mixopt.reporting.plots.drawing import COLOURS as COLOURS
from mixopt.reporting.plots.drawing import MARKS as MARKS
from mixopt.reporting.plots.drawing import Drawing as Drawing
from mixopt.reporting.plots.drawing import pdf_of as pdf_of
from mixopt.reporting.plots.drawing import picture as picture
from mixopt.reporting.plots.heat import half_way as half_way
from mixopt.reporting.plots.heat import mix as mix
from mixopt.reporting.plots.scores import is_part as is_part
from mixopt.reporting.plots.scores import pairs_of as pairs_of
from mixopt.reporting.plots.scores import shift as shift
from mixopt.reporting.plots.search import bars as bars
from mixopt.reporting.plots.search import front as front
from mixopt.reporting.plots.search import progress as progress
from mixopt.reporting.plots.search import runs_together as runs_together
from mixopt.reporting.plots.why import geometry as geometry
from mixopt.reporting.plots.why import training as training
