"""What comes back with a visitor: settings, runs and clips, of last time, a link or a file."""

from __future__ import annotations

from dataclasses import replace
from html import escape, unescape
from pathlib import Path
from typing import Any

import gradio as gr

from ..runs.loading import Models
from ..runs.request import Request
from ..runs.write import Result
from . import views
from .browser import remembered
from .components import Layout
from .links import RUN, from_link, link, usable
from .results import fill, find_result, kept_until, name_of, show
from .settings import Updates, as_settings, in_page_words, validated
from .uploads import take

MOST_RUNS = 12  # that the page lists
GONE = (
    "The clip's files are not kept any more; a clip is kept for a day. Its settings make it again: "
    "press Generate."
)


class Visits:
    """What the page does with what visitors bring along.

    Args:
        ui: The page's components.
        models: What clips are made with.
        output_dir: Where the runs have their folders.
    """

    def __init__(self, ui: Layout, models: Models, output_dir: Path) -> None:
        self.ui, self.models, self.output_dir = ui, models, output_dir

    def restore(self, request: gr.Request, kept: object, visitor: object) -> Updates:
        """The settings of a share link or of this browser's last visit, its runs, and the clip."""
        names = visitor.get("runs") if isinstance(visitor, dict) else None
        found = [self.find(name) for name in (names if isinstance(names, list) else [])]
        history = [result for result in found if result is not None][:MOST_RUNS]
        linked = from_link(dict(request.query_params), self.models)
        if linked is not None:
            return self.linked(*linked, request.query_params.get(RUN), history, visitor)
        # Gradio 6.31 shows 0 in a number that begins as None.
        updates = self.past(history, visitor, None) | {self.ui.seed: None}
        if isinstance(kept, dict) and kept:
            updates |= fill(self.ui, self.models, usable(kept, self.models)[0])
        shown = self.find(visitor.get("shown")) if isinstance(visitor, dict) else None
        if shown is not None:
            updates |= show(self.ui, shown, kept_until(shown.native))
            updates |= {self.ui.visitor: remembered(visitor, history, shown)}
        return updates

    def linked(
        self,
        settings: dict[str, Any],
        problems: list[str],
        name: str | None,
        history: list[Result],
        visitor: object,
    ) -> Updates:
        """The page of a share link: its settings, its clip, and what is wrong with it."""
        result = self.find(name)
        updates = self.past(history, visitor, result) | fill(self.ui, self.models, settings)
        if result is not None:
            updates |= show(self.ui, result, kept_until(result.native))
        elif name is not None:
            problems = [*problems, GONE]
        if problems:
            texts = list(map(in_page_words, problems))
            updates[self.ui.status] = views.remarks("This link needs a look", texts)
        return updates

    def past(self, history: list[Result], visitor: object, shown: Result | None) -> Updates:
        """The list of runs, and what the browser keeps of it."""
        posters = [(str(each.poster), views.caption(each.metadata)) for each in history]
        return {
            self.ui.history: history,
            self.ui.recent: gr.update(value=posters, visible=bool(posters)),
            self.ui.visitor: remembered(visitor, history, shown),
        }

    def find(self, name: object) -> Result | None:
        """A finished run by its name, as long as its files are there."""
        return find_result(self.output_dir, name)

    def share(self, history: list[Result], visitor: object, *values: Any) -> Updates:
        """A link to the settings as they are, with the clip that was made with them. Where the
        seed is empty, it is that clip's."""
        given = as_settings(values)
        try:
            asked = validated(self.models, given)
        except gr.Error as error:
            return {
                self.ui.link: gr.update(value="", visible=False),
                self.ui.link_told: gr.update(
                    value=escape(in_page_words(unescape(error.message))), visible=True
                ),
            }
        shown = self.find(visitor.get("shown")) if isinstance(visitor, dict) else None
        settings, name = asked.to_dict() | {"seed": given["seed"]}, None
        for result in [shown, *history] if shown is not None else history:
            made = Request.from_metadata(result.metadata)
            seed = made.seed if given["seed"] is None else asked.seed
            if made == replace(asked, seed=seed):
                settings, name = made.to_dict(), name_of(result)
                break
        return {
            self.ui.link: gr.update(value=link(settings, name, self.models), visible=True),
            self.ui.link_told: gr.update(value="", visible=True),
        }

    def take_file(self, path: str | None) -> Updates:
        """The settings of a clip, from a file that was dropped."""
        if path is None:
            return {self.ui.drop: None}
        try:
            recipe = take(path)
            asked = recipe.request.validate(self.models.preset)
            validated(self.models, asked.to_dict())
        except (ValueError, gr.Error) as error:
            text = in_page_words(unescape(getattr(error, "message", str(error))))
            card = views.notice("bad", "These settings can't be used", text)
            return {self.ui.status: card, self.ui.drop: None}
        text = recipe.differs(self.models) or "Generate makes the same clip again."
        card = views.notice("good", f"Settings of a clip by {recipe.made_by}", text)
        return {
            self.ui.status: card,
            self.ui.drop: None,
            **fill(self.ui, self.models, asked.to_dict()),
        }
