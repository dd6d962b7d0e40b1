"""A DNS server over UDP for one zone. Prints its port. Argument: a JSON file {"name": {"TXT": [...], "CNAME": "...", "A":
[...]}}, read again for each question."""

import ipaddress
import json
import socket
import struct
import sys

TYPES = {1: "A", 5: "CNAME", 16: "TXT", 28: "AAAA"}
NXDOMAIN = 3


def encoded(name):
    labels = [label.encode() for label in name.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def question(packet):
    labels, at = [], 12
    while packet[at]:
        labels.append(packet[at + 1 : at + 1 + packet[at]].decode())
        at += 1 + packet[at]
    kind, _ = struct.unpack_from(">HH", packet, at + 1)
    return ".".join(labels).lower(), kind, packet[12 : at + 5]


def data(kind, value):
    if kind == "A" or kind == "AAAA":
        return ipaddress.ip_address(value).packed
    if kind == "CNAME":
        return encoded(value)
    # A text longer than 255 bytes comes in several strings.
    raw = value.encode()
    return b"".join(bytes([len(raw[at : at + 255])]) + raw[at : at + 255] for at in range(0, len(raw), 255))


def answer(packet, zone):
    name, number, asked = question(packet)
    records = zone.get(name)
    found = (records or {}).get(TYPES.get(number), [])
    found = found if isinstance(found, list) else [found]
    header = packet[:2] + struct.pack(">HHHHH", 0x8580 | (NXDOMAIN if records is None else 0), 1, len(found), 0, 0)
    body = b""
    for value in found:
        rdata = data(TYPES[number], value)
        body += struct.pack(">HHHIH", 0xC00C, number, 1, 60, len(rdata)) + rdata
    return header + asked + body


server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    packet, peer = server.recvfrom(4096)
    with open(sys.argv[1]) as file:
        zone = json.load(file)
    server.sendto(answer(packet, zone), peer)
