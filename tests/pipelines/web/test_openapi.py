"""The description of the viewer's server: it names every route, and what the server answers is as it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from pipelines.camelyon16.read.score import ScoreConfig, score_slide
from pipelines.renal.read.run import report_slide
from pipelines.web.collection import Collection, Entry, entries_of, with_truth
from pipelines.web.review import ReviewRequest
from pipelines.web.server import STATIC, application, cookie_of
from tests.pipelines.renal.test_report import LOOSE
from tests.renal_slides import readers, scattered, slide_of
from tests.slides import RednessEngine
from wsi.results.folder import LocalFolder
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource
from wsi.vocabulary import NEGATIVE

DOCUMENT: dict[str, Any] = json.loads((STATIC / "openapi.json").read_text())


@pytest.fixture(scope="module")
def client(red_square: Path, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """A scored slide with truth, a report, and a slide as it is."""
    folder = tmp_path_factory.mktemp("openapi")
    out = folder / "out"
    score_slide(SlideRow(SlideSource(str(red_square))), "red", RednessEngine(), out / "red", ScoreConfig())
    slide = slide_of(folder / "k.tif", scattered(20, 0.4, 3), cols=2, rows=2, scar=1)
    report_slide(SlideRow(SlideSource(str(slide))), "k", readers(), out / "k", LOOSE)
    ring = [[100, 200], [900, 220], [500, 700], [100, 200]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (folder / "red.geojson").write_text(json.dumps({"features": [feature]}))
    entries = with_truth(entries_of(LocalFolder(out)), folder)
    bare = Entry("bare", "slide", SlideSource(str(red_square)))
    hosts = frozenset({"127.0.0.1:8000"})
    client = TestClient(
        application(Collection([*entries, bare], "A"), "t", hosts), base_url="http://127.0.0.1:8000"
    )
    client.cookies.set(cookie_of("t"), "t")
    return client


def check(value: object, path: str, status: int = 200, method: str = "get") -> None:
    """Whether a value is what the description says of an answer."""
    responses = DOCUMENT["paths"][path][method]["responses"]
    schema = responses[str(status)]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator(schema | {"components": DOCUMENT["components"]}).validate(value)


def test_every_route_is_described_and_none_else(client: TestClient) -> None:
    routes = {
        (re.sub(r":\w+", "", route.path), method.lower())
        for route in client.app.routes  # type: ignore[attr-defined]
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert routes == {(path, method) for path, value in DOCUMENT["paths"].items() for method in value}


@pytest.mark.parametrize("name", ["red", "k", "bare"])
def test_answers_are_as_described(client: TestClient, name: str) -> None:
    check(client.get("/api/slides").json(), "/api/slides")
    details = client.get(f"/api/slides/{name}").json()
    check(details, "/api/slides/{name}")
    assert ("truth" in details) == (name == "red")
    response = client.get(f"/api/slides/{name}/review")
    check(response.json(), "/api/slides/{name}/review", response.status_code)
    with pytest.raises(jsonschema.ValidationError):
        check(details | {"path": "/slides/of/patients.svs"}, "/api/slides/{name}")


def test_decisions_are_as_described(client: TestClient) -> None:
    url, path = "/api/slides/k/review", "/api/slides/{name}/review"
    state = client.get(url).json()
    box = client.get("/api/slides/k").json()["capillaries"][0]
    body = {
        "what": "decide",
        "by": "A",
        "subject": state["subject"],
        "after": state["last"],
        "id": box[6],
        "group": NEGATIVE,
    }
    stale = body | {"after": "something"}
    for sent, status in ((stale, 409), (body, 200), (body, 409), ({}, 422)):
        response = client.post(url, json=sent)
        assert response.status_code == status
        check(response.json(), path, status, "post")
    schema = DOCUMENT["components"]["schemas"]["Decision"]
    assert set(schema["properties"]) == set(ReviewRequest.model_fields)
    assert schema["required"] == sorted(k for k, f in ReviewRequest.model_fields.items() if f.is_required())


@pytest.mark.parametrize(
    "url", ["/api/slides/nothing", "/api/slides/nothing/review", "/static/nothing", "/api/slides/bare/heat"]
)
def test_refusals_are_as_described(client: TestClient, url: str) -> None:
    response = client.get(url)
    assert response.status_code == 404
    check(response.json(), re.sub("nothing|bare", "{name}", url), 404)
