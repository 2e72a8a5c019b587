//! What an RTU device answers, byte for byte, for the Modbus tests.

/// The checksum of RTU, made anew so that a mistake in the other would show.
pub fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    let mut crc = 0xFFFF_u16;
    for byte in &frame {
        crc ^= u16::from(*byte);
        for _ in 0..8 {
            let odd = crc & 1 == 1;
            crc >>= 1;
            if odd {
                crc ^= 0xA001;
            }
        }
    }
    frame.extend(crc.to_le_bytes());
    frame
}

/// A proper answer to an RTU request: each register holds its own address. Addresses from 9000 to
/// 9999 are refused.
pub fn answer(request: &[u8]) -> Vec<u8> {
    let word = |i: usize| u16::from_be_bytes([request[i], request[i + 1]]);
    let (at, count) = (word(2), word(4));
    if (9000..10_000).contains(&at) {
        return sealed(vec![request[0], request[1] | 0x80, 2]);
    }
    let values: Vec<u8> = match request[1] {
        1 | 2 => vec![0; usize::from(count).div_ceil(8)],
        _ => (at..).take(count.into()).flat_map(u16::to_be_bytes).collect(),
    };
    let mut frame = vec![request[0], request[1], values.len() as u8];
    frame.extend(values);
    sealed(frame)
}
