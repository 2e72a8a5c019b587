"""A Modbus TCP device made with pymodbus, for the Modbus tests; an RTU device with two units, 1 and 2,
when it is given the path of a serial device.

Prints one JSON line with its port and the values it holds. Then, for each line it reads, it prints
the requests it has had since the last: [[function, address, count], ...]. Ends at end of input.
"""

import asyncio
import itertools
import json
import logging
import struct
import sys

import pymodbus
from pymodbus.client import ModbusTcpClient
from pymodbus.framer import FramerType
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

TYPES = {  # name: (struct code, values)
    "u16": ("H", [0, 1, 0x1234, 0xFFFE]),
    "i16": ("h", [-2, 0x1234, -32768]),
    "u32": ("I", [0x12345678, 0xFFFFFFFE]),
    "i32": ("i", [-2, 0x12345678, -(2**31)]),
    "u64": ("Q", [0x0012345678ABCDEF, 2**63]),
    "i64": ("q", [-2, -0x0012345678ABCDEF]),
    "f32": ("f", [23.5, -123.456, 1e-30]),
    "f64": ("d", [23.5, -123.456, 1e-300]),
}
ORDERS = {
    2: ["AB", "BA"],
    4: ["ABCD", "CDAB", "BADC", "DCBA", "BCDA"],
    8: ["ABCDEFGH", "GHEFCDAB", "BADCFEHG", "HGFEDCBA", "EFGHABCD", "CDABGHEF", "FEHGBADC", "DCBAHGFE", "BCDEFGHA"],
}
PYMODBUS = {
    "u16": "UINT16", "i16": "INT16", "u32": "UINT32", "i32": "INT32",
    "u64": "UINT64", "i64": "INT64", "f32": "FLOAT32", "f64": "FLOAT64",
}
BITS = [True, False, True, True, False, False, True, False, True, True, False]
# Mapped but for two addresses: what one bad address does to its neighbours.
ISLANDS = [range(3000, 3010), range(3011, 3020), range(3021, 3030)]


def cases():
    """Every type in every order: (type, order, value, registers)."""
    for name, (code, values) in TYPES.items():
        size = struct.calcsize(">" + code)
        for order, value in itertools.product(ORDERS[size], values):
            big = struct.pack(">" + code, value)
            wire = bytes(big["ABCDEFGH".index(letter)] for letter in order)
            registers = list(struct.unpack(f">{size // 2}H", wire))
            check(name, order, value, registers)
            yield name, order, struct.unpack(">" + code, big)[0], registers


def check(name, order, value, registers):
    """Where pymodbus knows the order too, it has to agree."""
    word_orders = {"ABCDEFGH"[: len(order)]: "big", "GHEFCDAB"[8 - len(order) :]: "little"}
    if order in word_orders and len(order) > 2:
        kind = getattr(ModbusTcpClient.DATATYPE, PYMODBUS[name])
        theirs = ModbusTcpClient.convert_to_registers(value, kind, word_order=word_orders[order])
        assert theirs == registers, (name, order, value, theirs, registers)


async def main():
    signals, holding, at = [], [], 0
    for kind, order, value, registers in cases():
        for table in ("holding", "input"):
            signals.append({"at": f"{table}:{at}", "type": kind, "order": order, "value": value})
        holding.extend(registers)
        at += len(registers)
    for i, bit in enumerate(BITS):
        signals.append({"at": f"coil:{i}", "type": "bool", "value": int(bit)})
        signals.append({"at": f"discrete:{i}", "type": "bool", "value": int(not bit)})
    for bit in range(16):
        signals.append({"at": f"holding:2000.{bit}", "type": "bool", "value": 0xA5C3 >> bit & 1})

    def registers(address, values):
        return SimData(address, values=values, datatype=DataType.REGISTERS)

    def bits(values):
        return [SimData(0, values=values, datatype=DataType.BITS)]

    islands = [registers(r.start, list(r)) for r in ISLANDS]
    text = list(struct.unpack(">5H", b"Pump 7\0\0XX"))
    table = [registers(0, holding), registers(2000, [0xA5C3]), registers(2100, text), *islands]

    def device(unit):
        copies = [registers(0, list(holding))]
        return SimDevice(unit, simdata=(bits(BITS), bits([not b for b in BITS]), table, copies))

    seen = []

    def note(sending, pdu):
        if not sending:
            seen.append([pdu.function_code, pdu.address, pdu.count])
        return pdu

    if sys.argv[1:]:
        units, path = [device(1), device(2)], sys.argv[1]
        # Unit 9 hears what it is asked and is silent: other units that are missing get an exception.
        silent = lambda sending, frame: b"" if sending and frame[0] == 9 else frame
        server = ModbusSerialServer(
            units, framer=FramerType.RTU, port=path, baudrate=115200, trace_pdu=note, trace_packet=silent
        )
        logging.disable()
        await server.serve_forever(background=True)
        port = 0
    else:
        server = ModbusTcpServer(device(1), address=("127.0.0.1", 0), trace_pdu=note)
        await server.serve_forever(background=True)
        port = server.transport.sockets[0].getsockname()[1]
    print(json.dumps({"port": port, "signals": signals, "version": pymodbus.__version__}), flush=True)
    while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        print(json.dumps(seen), flush=True)
        seen.clear()
    await server.shutdown()


asyncio.run(main())
