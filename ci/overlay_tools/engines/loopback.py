"""Talking to servers on this machine: nothing of it goes through a proxy, whatever the environment names."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openai

HOST = "127.0.0.1"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def open_directly(request: urllib.request.Request | str, *, timeout: float) -> HTTPResponse:
    """Open an address of this machine.

    Raises urllib.error.URLError as `urllib.request.urlopen` does.
    """
    answer: HTTPResponse = _DIRECT.open(request, timeout=timeout)
    return answer


def post_request(url: str, body: Mapping[str, object]) -> urllib.request.Request:
    """Return the request that sends JSON to an address."""
    return urllib.request.Request(url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"})


def post(url: str, body: Mapping[str, object], *, timeout: float) -> Any:  # noqa: ANN401  # whatever JSON comes back
    """Send JSON to an address of this machine, and return what is answered, JSON or text.

    Raises urllib.error.URLError as `urllib.request.urlopen` does.
    """
    with open_directly(post_request(url, body), timeout=timeout) as response:
        text = response.read()
        return json.loads(text) if response.headers.get_content_type() == "application/json" else text.decode()


def openai_client(url: str, *, timeout: float) -> openai.OpenAI:
    """Return an OpenAI client of a server on this machine, which tries each request once."""
    import openai

    direct = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=timeout, max_retries=0, http_client=direct)


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which programs ask this machine directly, and other hosts as they did before.

    A server asks itself when it warms up, and fetches pictures from elsewhere.
    """
    ours = [HOST, "localhost"]
    said = [host for name in ("no_proxy", "NO_PROXY") for host in environment.get(name, "").split(",") if host.strip()]
    hosts = ",".join(dict.fromkeys([*(host.strip() for host in said), *ours]))
    return {**environment, "no_proxy": hosts, "NO_PROXY": hosts}
