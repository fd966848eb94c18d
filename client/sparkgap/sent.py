"""For code inside functions and models: where the files are that travelled with it; the rank or the model host has put them there."""

from __future__ import annotations

import os
from pathlib import Path

from sparkgap_protos import places


def files() -> Path:
    """The folder that holds the files and folders given in ``modules=``, under their own names: ``sparkgap.files() / "conf" / "base.yaml"``.

    Called inside a rank, a model or a process that one of them has started; the folder is theirs alone and is removed after their end. Anywhere else
    it is the current folder, so that the same code runs where it was written. Costs nothing.

    Returns
    -------
    Path
        The folder that also came first on ``sys.path``; a script lies in it, of a folder with a ``__main__.py`` it is the copy.
    """
    return Path(os.environ.get(places.FOLDER) or Path.cwd())
