"""Three tasks on real data: the Sobel filter on pictures, frame differences on video, and writing text (`tasks.text`).

    task = rnn.tasks.sobel_task("rows", rng=np.random.default_rng(0))
    how = rnn.tasks.recipe("rows", task.size)
    layer = rnn.tasks.make_layer(task, how.hidden, seed=0)
    history = rnn.tasks.train(layer, task, how, seed=0)
    print(rnn.tasks.judge(layer, task).relative_rmse)

`rnn train` on the command line is the same and more. Reading and drawing need the extra `bench`.
"""

from . import frames, sobel, text
from .cells import CELLS
from .data import (
    DataError,
    MissingPackage,
    Picture,
    Video,
    read_picture,
    read_video,
    sample_pictures,
    sample_videos,
    synthetic_pictures,
)
from .pictures import draw_bits, draw_loss, draw_panels
from .task import CONTRAST, LinearPredictor, RelativeError, Sample, Task, relative_rmse
from .training import MODES, CosineAdam, Recipe, Result, frames_task, judge, make_layer, recipe, sobel_task, train

__all__ = [
    "CELLS",
    "CONTRAST",
    "MODES",
    "CosineAdam",
    "DataError",
    "LinearPredictor",
    "MissingPackage",
    "Picture",
    "Recipe",
    "RelativeError",
    "Result",
    "Sample",
    "Task",
    "Video",
    "draw_bits",
    "draw_loss",
    "draw_panels",
    "frames",
    "frames_task",
    "judge",
    "make_layer",
    "read_picture",
    "read_video",
    "recipe",
    "relative_rmse",
    "sample_pictures",
    "sample_videos",
    "sobel",
    "sobel_task",
    "synthetic_pictures",
    "text",
    "train",
]
