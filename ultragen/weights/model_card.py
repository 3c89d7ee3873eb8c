"""The page that lies in a saved pipeline's folder, and which the Hub shows."""

from __future__ import annotations

from pathlib import Path

_CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-video
---

# An UltraGen pipeline

```python
from ultragen import UltraGenPipeline

pipe = UltraGenPipeline.from_pretrained("THIS FOLDER")
```

`DiffusionPipeline.from_pretrained` knows diffusers' own classes alone, and imports no others. In a
program that calls it, the last of these lines comes before:

```python
import diffusers
import ultragen

diffusers.UltraGenPipeline = ultragen.UltraGenPipeline
```
"""


def write_model_card(folder: Path) -> None:
    """Says in a pipeline's folder how it is loaded, unless there is a page already."""
    path = folder / "README.md"
    if not path.exists():
        path.write_text(_CARD, encoding="utf-8")
