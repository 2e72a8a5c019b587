//! Durability: journal and outbox on sled, with our own fsync. sled stays private here.
