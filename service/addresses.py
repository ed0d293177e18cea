"""Where a server may call to on somebody's word: public addresses, and hosts that the operator has named."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Collection, Iterable
from typing import Any
from urllib.parse import urlsplit

import httpcore

from etd_ds.contract import errors

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|[0-9A-Fa-f:.]{2,45}")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_AZURE_HOST = ipaddress.IPv4Address("168.63.129.16")
"""A public address behind which every Azure machine finds its host's own services."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: _Address) -> bool:
    """Whether this is an address of the public internet, also when IPv6 wraps an IPv4 one."""
    if isinstance(address, ipaddress.IPv6Address):
        inside: Iterable[_Address | None] = (address.ipv4_mapped, address.sixtofour, *(address.teredo or ()))
        if address in _NAT64:
            inside = (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF),)
        wrapped = [one for one in inside if one is not None]
        if wrapped:
            return all(is_public(one) for one in wrapped)
    special = address.is_private or address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not special and address != _AZURE_HOST


def check_url(url: str, named: Collection[str]) -> None:
    """Raises `EtdError` for what is no address to call: https to a public host, or http too to a `named` one."""
    wanted = "an https:// address of a public host"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        literal = _literal(host)
    except ValueError:
        parts, host, literal = urlsplit(""), "", None
    plain = all("!" <= char <= "~" for char in url) and "@" not in parts.netloc and not parts.fragment
    known = host in named
    safe = parts.scheme == "https" and (literal is None or is_public(literal))
    if not (plain and _HOST.fullmatch(host) and (safe or (known and parts.scheme in ("http", "https")))):
        raise errors.EtdError(f"webhook: wanted {wanted}", field="webhook", wanted=wanted, got=url[:200])


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to the addresses that it has checked, so a name that answers differently the next time gains nothing."""

    def __init__(self, named: Collection[str]) -> None:
        self._named = named
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # the latter for a label that is empty or too long
            raise httpcore.ConnectError("the host's name is not known") from None
        addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
        if host not in self._named and not all(is_public(_literal(one) or _NOWHERE) for one in addresses):
            raise httpcore.ConnectError("the host's address is not public")
        for number, address in enumerate(addresses, 1):
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(addresses):
                    raise
        raise httpcore.ConnectError("the host has no address")


_NOWHERE = ipaddress.IPv4Address(0)


def _literal(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
