"""The API server of a cluster: its address, the credentials, and one HTTP session.

The package `kubernetes_asyncio` reads a kubeconfig or the service account of a pod, refreshes
tokens, and sets TLS and proxies up. Its own watch is not used: `reflector` says why.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import aiohttp

from wardrop.errors import InputError
from wardrop.kubernetes.environment import SERVICE_ACCOUNT


class AccessError(InputError):
    """There is no API server to ask, or its credentials cannot be read."""


class Access:
    """Sends requests to an API server.

    The session opens with the first request. `forget` closes it, so that the next request reads
    the credentials again.

    Args:
        environment: Variables of the process. `KUBECONFIG` and `KUBERNETES_SERVICE_HOST` matter.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._client: Any = None
        """An `ApiClient`; None while the session is closed."""
        self._opening = asyncio.Lock()

    async def get(
        self, path: str, query: Mapping[str, str], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        """The answer to a GET request, of any status, with its body unread.

        Args:
            path: Path of the resource.
            query: Parameters.
            timeout: Deadlines of the request and of each read.

        Raises:
            AccessError: The credentials cannot be read.
            aiohttp.ClientError, OSError, TimeoutError: The API server does not answer.
        """
        # Several reflectors share the session, so only one of them opens it.
        async with self._opening:
            client = self._client = self._client or await self._open()
        configuration: Any = client.configuration
        headers: dict[str, str] = {"Accept": "application/json"}
        parameters = list(query.items())
        await client.update_params_for_auth(headers, parameters, ["BearerToken"])
        rest: Any = client.rest_client
        return cast(
            aiohttp.ClientResponse,
            await rest.GET(
                f"{configuration.host}{path}",
                headers=headers,
                query_params=parameters,
                _preload_content=False,
                _request_timeout=timeout,
            ),
        )

    async def forget(self) -> None:
        """Close the session."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _open(self) -> Any:
        # Imported here: the package holds every kind of Kubernetes and takes a second to load.
        try:
            from kubernetes_asyncio import config
            from kubernetes_asyncio.client import ApiClient, Configuration
        except ModuleNotFoundError as error:
            raise AccessError(
                f"Kubernetes needs the package {error.name}; pip install 'wardrop[kubernetes]'"
            ) from error
        loader: Any = config
        configuration = Configuration()
        file = _kubeconfig(self._environment)
        try:
            if file is not None:
                await loader.load_kube_config(
                    config_file=file, client_configuration=configuration, persist_config=False
                )
            else:
                loader.load_incluster_config(
                    client_configuration=configuration,
                    environ=self._environment,
                    token_filename=str(SERVICE_ACCOUNT / "token"),
                    cert_filename=str(SERVICE_ACCOUNT / "ca.crt"),
                )
        except Exception as error:
            # The loader raises errors of many kinds for a file that it cannot use.
            place = file or f"the service account in {SERVICE_ACCOUNT}"
            raise AccessError(
                f"{place} cannot be used: {error}; run in a pod with a service account, or name a "
                "kubeconfig in KUBECONFIG"
            ) from error
        return ApiClient(configuration)


def _kubeconfig(environment: Mapping[str, str]) -> str | None:
    """The kubeconfig to read; None inside a pod. Dynamo prefers a kubeconfig as well."""
    if given := environment.get("KUBECONFIG", ""):
        return given
    usual = Path(os.path.expanduser("~")) / ".kube" / "config"
    return str(usual) if usual.is_file() else None
