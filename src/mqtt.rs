//! One file that knows rumqttc: connections for MQTT 3.1.1 and 5 behind one small interface.
