"""POST /v1/outcomes: an application says how good an answer was. Next: api/outcome.py."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictStr

from moestro.api.openai_bodies import Number
from moestro.api.outcome import OutcomeBook, PostedOutcome
from moestro.errors import StorageError
from moestro.server.json_route import JsonRoute
from moestro.server.keys import KEY_NAME
from moestro.server.openapi import ANSWERS
from moestro.server.sse import JsonResponse

Score = Annotated[Number, Field(ge=0, le=1)]
Name = Annotated[StrictStr, Field(min_length=1, max_length=256)]


class OutcomeBody(BaseModel):
    """A score of an answer; `request_id` is the header x-request-id of that answer."""

    model_config = ConfigDict(extra="forbid")

    request_id: Name
    score: Score
    model: Name | None = None
    strongest_score: Score | None = Field(
        None, description="What the strongest model's answer to the same request got."
    )
    note: Annotated[StrictStr, Field(max_length=2000)] | None = None


def routes(book: OutcomeBook) -> APIRouter:
    """Build the route."""
    paths = APIRouter(route_class=JsonRoute)

    @paths.post("/v1/outcomes", tags=["gateway"], response_class=Response, responses=ANSWERS)
    async def add_outcome(body: OutcomeBody, request: Request) -> Response:
        """Keep how good an answer was."""
        outcome = PostedOutcome(
            caller=request.scope.get("state", {}).get(KEY_NAME), **body.model_dump()
        )
        try:
            number = await book.add(outcome)
        except StorageError as error:
            message = f"the outcome was not kept: {error}"
            raise HTTPException(503, message, headers={"retry-after": "2"}) from error
        return JsonResponse({"id": number, "object": "outcome"})

    return paths
