"""The part of the API that is about the configuration file: apply, diff, history, and the overlay on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from pydantic import BaseModel

from fnat.model import ApplyView, ConfigView, DiffView, FileRequest, GenerationView

if TYPE_CHECKING:
    from fnat.control import Control


class Confirmed(BaseModel):
    confirmed: bool = True


def router(control: Control) -> APIRouter:
    routes = APIRouter(prefix="/v1/config")

    @routes.get("")
    def show(startup: bool = False) -> ConfigView:
        """What is in force as a file, or the file that it is on top of; and the run-time changes between the two."""
        return control.config_view(startup=startup)

    @routes.post("/diff")
    def diff(request: FileRequest) -> DiffView:
        """What applying the text would change, cut and leave."""
        return control.diff(request.text, request.source)

    @routes.post("/apply")
    def apply(request: FileRequest) -> ApplyView:
        """The text is the intent from now on, with the run-time changes on top; all or nothing."""
        return control.apply(request.text, request.source, confirm=request.confirm)

    @routes.post("/confirm")
    def confirm() -> Confirmed:
        """What was applied for a time stays."""
        control.confirm()
        return Confirmed()

    @routes.get("/history")
    def history() -> list[GenerationView]:
        """Texts that were in force, oldest first."""
        return control.generations()

    @routes.post("/rollback")
    def rollback(number: int | None = None) -> ApplyView:
        """Apply a text of the history; without a number the one before."""
        return control.rollback(number)

    @routes.post("/save")
    def save() -> ApplyView:
        """Fold the run-time changes into the file."""
        return control.save()

    @routes.post("/discard")
    def discard() -> ApplyView:
        """Drop the run-time changes; the answer lists what that changes."""
        return control.discard()

    return routes
