"""A small Home Assistant, after its documentation of MQTT device discovery: `PORT` on the command line.
It says `online` on its birth topic, takes discovery messages, checks what the documentation asks of
them, subscribes to what they name, renders templates with Jinja2, and prints each change of an entity
as JSON, one a line. On the line `restart` it forgets all it has heard and says `online` again."""

import json
import sys

import jinja2
import paho.mqtt.client as mqtt

# Abbreviations that the documentation lists, as far as they are used.
LONG = {
    "dev": "device", "o": "origin", "cmps": "components", "p": "platform", "ids": "identifiers", "mf": "manufacturer",
    "mdl": "model", "sw": "sw_version", "stat_t": "state_topic", "avty_t": "availability_topic",
    "val_tpl": "value_template", "uniq_id": "unique_id", "dev_cla": "device_class", "stat_cla": "state_class",
    "unit_of_meas": "unit_of_measurement", "json_attr_t": "json_attributes_topic",
    "ops": "options",
}
PLATFORMS = {"sensor", "binary_sensor"}
DEVICE_CLASSES = {"binary_sensor": {"problem"}, "sensor": {"enum"}}
STATE_CLASSES = {"measurement", "total", "total_increasing"}
KEYS = {
    "platform", "name", "unique_id", "state_topic", "value_template", "state_class", "unit_of_measurement",
    "device_class", "json_attributes_topic", "availability_topic", "qos", "options",
}
environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
entities, available, shown = {}, {}, {}


def say(**what):
    sys.stdout.write(json.dumps(what, sort_keys=True) + "\n")
    sys.stdout.flush()


def longer(value):
    if isinstance(value, dict):
        return {LONG.get(k, k): longer(v) for k, v in value.items()}
    return value


def discovered(client, topic, payload):
    parts = topic.split("/")
    assert len(parts) in (4, 5) and parts[1] == "device" and parts[-1] == "config", topic
    assert all(c.isalnum() or c in "_-" for c in parts[-2]), f"{parts[-2]} is no object id"
    config = json.loads(payload)
    whole = longer({k: v for k, v in config.items() if k not in ("cmps", "components")})
    components = config.get("cmps", config.get("components"))
    assert whole["device"].get("identifiers"), "a device needs identifiers"
    assert whole["origin"].get("name"), "device discovery needs an origin with a name"
    assert components, "device discovery needs components"
    shared = {k: v for k, v in whole.items() if k not in ("device", "origin")}
    for component in components.values():
        entity = {**shared, **longer(component)}
        platform = entity["platform"]
        assert platform in PLATFORMS, platform
        assert entity["unique_id"] and entity["state_topic"]
        assert set(entity) <= KEYS, set(entity) - KEYS
        assert entity.get("state_class", "measurement") in STATE_CLASSES
        if "device_class" in entity:
            assert entity["device_class"] in DEVICE_CLASSES[platform]
        enum = entity.get("device_class") == "enum"
        assert enum == ("options" in entity), "options belong to the device class enum, and only there"
        assert not (enum and "state_class" in entity), "an enum is no measurement"
        entity["template"] = environment.from_string(entity.get("value_template", "{{ value }}"))
        name = f"{platform}.{whole['device']['name']} {entity['name']}"
        assert entities.get(entity["unique_id"], {"name": name})["name"] == name, "ids are unique"
        entity["name"] = name
        entities[entity["unique_id"]] = entity
        for key in ("availability_topic", "state_topic", "json_attributes_topic"):
            if key in entity:
                client.subscribe(entity[key], entity.get("qos", 0))
    say(device=whole["device"]["name"], entities=len(components))


def heard(client, _userdata, message):
    topic, payload = message.topic, message.payload.decode()
    if topic.startswith("homeassistant/") and topic.endswith("/config"):
        return discovered(client, topic, payload)
    for entity in list(entities.values()):
        if topic == entity.get("availability_topic"):
            assert payload in ("online", "offline"), payload
            show(entity, available=payload == "online")
        if topic == entity["state_topic"]:
            value = entity["template"].render(value=payload, value_json=json.loads(payload))
            if entity["platform"] == "binary_sensor":
                assert value in ("ON", "OFF"), value
            elif "options" in entity:
                assert value in entity["options"], value
            elif value != "None":
                float(value)
            show(entity, state="unknown" if value == "None" else value)
        if topic == entity.get("json_attributes_topic"):
            assert isinstance(json.loads(payload), dict)
            show(entity, attributes=sorted(json.loads(payload)))


def show(entity, **change):
    now = shown.setdefault(entity["unique_id"], {"available": False, "state": "unknown"})
    before = dict(now)
    now.update(change)
    if now != before:
        state = now["state"] if now["available"] else "unavailable"
        say(entity=entity["name"], state=state, unit=entity.get("unit_of_measurement"), attributes=now.get("attributes"))


def checked(*arguments):
    try:
        heard(*arguments)
    except Exception as problem:
        say(problem=f"{type(problem).__name__}: {problem}")


def connected(client, *_):
    client.subscribe("homeassistant/#", 1)
    client.publish("homeassistant/status", "online", qos=1)
    say(started=True)


client = mqtt.Client("home-assistant")
client.on_message = checked
client.on_connect = connected
client.connect("127.0.0.1", int(sys.argv[1]))
client.loop_start()
for line in sys.stdin:
    if line.strip() == "restart":
        entities.clear()
        shown.clear()
        client.publish("homeassistant/status", "online", qos=1)
