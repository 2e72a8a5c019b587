"""The other side of Sparkplug B, by the PyPI library pysparkplug: `edge PORT` is an edge node with one
device, `host PORT` a host application. Commands come on stdin, one a line; what happens goes to stdout
as JSON, one a line."""

import json
import os
import sys
import time

from pysparkplug import (
    Client, DataType, DData, Device, EdgeNode, Message, MessageType, Metric, NCmd, QoS, Topic,
    get_current_timestamp,
)

GROUP, NODE, DEVICE = "plant", "edge", "press"
REBIRTH = "Node Control/Rebirth"


def say(**what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def metric(name, datatype, value, **more):
    return Metric(more.pop("timestamp", get_current_timestamp()), name, datatype, value=value, **more)


def edge(port):
    numbers = {
        "int8": (DataType.INT8, -128), "int16": (DataType.INT16, -32768), "int32": (DataType.INT32, -2147483648),
        "int64": (DataType.INT64, -(2**53)), "uint8": (DataType.UINT8, 255), "uint16": (DataType.UINT16, 65535),
        "uint32": (DataType.UINT32, 4294967295), "uint64": (DataType.UINT64, 2**53), "float": (DataType.FLOAT, 1.5),
        "double": (DataType.DOUBLE, -2.25), "boolean": (DataType.BOOLEAN, True),
    }
    metrics = [metric(n, t, v, alias=i + 1) for i, (n, (t, v)) in enumerate(numbers.items())]
    metrics.append(metric("text", DataType.STRING, "x", alias=90))
    device = Device(DEVICE, metrics)

    def on_command(node, message):
        names = [(m.name, m.value) for m in message.payload.metrics]
        say(ncmd=names)
        if (REBIRTH, True) in names:
            births()

    node = EdgeNode(GROUP, NODE, [metric(REBIRTH, DataType.BOOLEAN, False)], cmd_callback=on_command)
    node.register(device)

    # The library takes the number of the next connection for a rebirth; it has to stay the same.
    of_connection = []
    prepare = node._setup_will

    def prepared():
        prepare()
        of_connection.append(node._bd_seq_metric)

    node._setup_will = prepared

    def births():
        paho = node._client._client
        node._bd_seq_metric = of_connection[0]
        paho.on_connect(paho, {}, {}, 0)

    def data(*metrics):
        topic = Topic(message_type=MessageType.DDATA, group_id=GROUP, edge_node_id=NODE, device_id=DEVICE)
        payload = DData(timestamp=get_current_timestamp(), seq=node._seq, metrics=metrics)
        node._client.publish(Message(topic=topic, payload=payload, qos=QoS.AT_MOST_ONCE, retain=False))

    node.connect("127.0.0.1", port=port)
    # The library has published its births when it prepares the next will; what the broker acks after
    # them comes after them.
    while len(of_connection) < 2:
        time.sleep(0.005)
    node._client._client.publish("ready", qos=1).wait_for_publish()
    say(started=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "named":
            node.update_device(DEVICE, [metric("int16", DataType.INT16, int(rest[0]))])
        elif word == "alias":
            data(metric(None, DataType.INT32, int(rest[0]), alias=3))
        elif word == "gap":
            node._seq
        elif word == "historical":
            data(metric(None, DataType.INT32, int(rest[0]), alias=3, timestamp=int(rest[1]), is_historical=True))
        elif word == "null":
            data(Metric(get_current_timestamp(), None, DataType.INT32, alias=3, is_null=True))
        elif word == "device-dies":
            node.deregister(DEVICE)
        elif word == "device-lives":
            node.register(device)
        elif word == "die":
            os._exit(1)
        say(done=word)


def host(port):
    client = Client()
    paho = client._client

    def on_message(_client, _userdata, raw):
        message = client._handle_message(raw)
        said = message.payload
        metrics = getattr(said, "metrics", (said.bd_seq_metric,) if hasattr(said, "bd_seq_metric") else ())
        metrics = [
            {"name": m.name, "value": m.value, "historical": m.is_historical, "at": m.timestamp, "type": m.datatype.name}
            for m in metrics
        ]
        seq = getattr(message.payload, "seq", None)
        say(type=message.topic.message_type.name, node=message.topic.edge_node_id, device=message.topic.device_id,
            group=message.topic.group_id, seq=seq, metrics=metrics, qos=raw.qos, retain=raw.retain)

    def on_subscribe(*_):
        say(subscribed=True)

    paho.on_message = on_message
    paho.on_subscribe = on_subscribe
    client.connect("127.0.0.1", port=port, callback=lambda c: paho.subscribe("spBv1.0/#", 1))
    for line in sys.stdin:
        word, group, node = line.split()
        if word == "rebirth":
            topic = Topic(message_type=MessageType.NCMD, group_id=group, edge_node_id=node)
            payload = NCmd(timestamp=get_current_timestamp(), metrics=(metric(REBIRTH, DataType.BOOLEAN, True),))
            client.publish(Message(topic=topic, payload=payload, qos=QoS.AT_MOST_ONCE, retain=False))


{"edge": edge, "host": host}[sys.argv[1]](int(sys.argv[2]))
